"""How does OpenAPI describe what this one model takes and answers?"""

from __future__ import annotations

from typing import Any

from mach.signature import Signature

NPY = "application/x-npy"


def request_schema(signature: Signature) -> dict[str, Any]:
    """The body of /predict: JSON, or an .npy array."""
    inputs = {"type": "array", "minItems": 1, "items": _sample(signature)}
    body = {
        "type": "object",
        "properties": {"inputs": inputs},
        "required": ["inputs"],
        "additionalProperties": False,
    }
    shape = ", ".join(map(str, ("samples", *signature.shape)))
    kind = "int64" if signature.text else "float32, or any other numbers"
    array = {
        "type": "string",
        "format": "binary",
        "description": f"What numpy.save writes of an array [{shape}] of {kind}.",
    }
    return {
        "required": True,
        "content": {"application/json": {"schema": body}, NPY: {"schema": array}},
    }


def takes_text(signature: Signature) -> bool:
    """Whether a sample may be a text."""
    return signature.text and signature.tokenizer is not None


def _sample(signature: Signature) -> dict[str, Any]:
    if takes_text(signature):
        # How many tokens a text has does not follow from its length.
        least = 1 if signature.shorter else signature.shape[0]
        return {"type": "string", "minLength": 1, "description": f"At least {least} tokens."}
    if signature.text:
        item: dict[str, Any] = {
            "type": "integer",
            "minimum": 0,
            "maximum": signature.classes - 1,
        }
    else:
        item = {"type": "number", "minimum": -signature.largest, "maximum": signature.largest}
    for place, size in enumerate(reversed(signature.shape)):
        least = 1 if signature.text and signature.shorter and place == 0 else size
        item = {"type": "array", "items": item, "minItems": least, "maxItems": size}
    return item
