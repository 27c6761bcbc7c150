"""A model of a run as files that need no mach, and how such files are read again.

<run>/exports/<window>-<format>/
  model.json           what it takes, what its answers mean; for safetensors how it is built
  model.safetensors    and model.py, or
  model.pt2            of torch.export, or
  model.onnx
  README.md            the model card
"""
