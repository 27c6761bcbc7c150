"""A server on loopback that wandb's own client takes for wandb's: it keeps what comes.

It answers what the client of constraints.txt (0.31) asks for a run, its files and artifacts, and
for a workspace. What it was not taught is answered with nothing, and told in `unknown`.
"""

from __future__ import annotations

import json
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "c" * 40
ME = {"id": "u1", "entity": "me", "username": "me", "email": "me@here", "flags": "{}"}
PROJECT = {"id": "UHJvamVjdDox", "internalId": "1", "name": "mach", "entity": {"name": "me"}}
USED = "QXJ0aWZhY3Q6MQ=="
"""Id of whatever artifact somebody wants to use."""


@dataclass
class Kept:
    """What clients have sent."""

    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was first said of a run, by its id."""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each run."""
    files: dict[str, bytes] = field(default_factory=dict)
    asked_for: list[str] = field(default_factory=list)
    """Artifacts by name, as somebody wanted to use them."""
    used: list[tuple[str, str]] = field(default_factory=list)
    """Run and artifact it said it was made of."""
    coming: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Artifacts that were begun, by id: several clients may make one at the same time."""
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    """Those that were committed."""
    views: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Operations that have no answer here."""

    # --- GraphQL: one method for each operation ------------------------------------------------

    def viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {**ME, "teams": {"edges": []}}}

    get_default_entity = viewer

    def server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def organization_core_weave_organization_id(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def upsert_bucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"]
        self.runs.setdefault(name, asked)
        project = {"id": "p1", "name": asked["project"], "entity": {"id": "e1", "name": "me"}}
        bucket = {"id": f"b-{name}", "name": name, "displayName": asked["displayName"]}
        bucket |= {"description": "", "config": "{}", "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}

    def create_run_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = asked["run"]
        files = [{"name": n, "uploadUrl": f"{self.url}/{run}/{n}"} for n in asked["files"]]
        return {"createRunFiles": {"runID": f"b-{run}", "uploadHeaders": [], "files": files}}

    def artifact_membership_by_name(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked_for.append(asked["name"])
        collection = {"__typename": "ArtifactSequence", "project": PROJECT}
        collection["name"] = asked["name"].partition(":")[0]
        artifact = {"__typename": "Artifact", "id": USED, "artifactSequence": collection}
        artifact |= {"versionIndex": 0, "artifactType": {"name": "checkpoint"}, "metadata": "{}"}
        artifact |= {"description": None, "ttlDurationSeconds": -2, "ttlIsInherited": True}
        artifact |= {"tags": [], "historyStep": None, "state": "COMMITTED", "size": 1}
        artifact |= {"digest": "d", "commitHash": "c", "fileCount": 1, "aliases": []}
        artifact |= {"createdAt": "2026-01-01T00:00:00", "updatedAt": None}
        member = {"__typename": "ArtifactCollectionMembership", "id": "m1", "versionIndex": 0}
        member |= {"createdAt": "2026-01-01T00:00:00", "aliases": []}
        member |= {"artifactCollection": collection, "artifact": artifact}
        return {"project": {"artifactCollectionMembership": member}}

    def use_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.used.append((asked["runName"], asked["artifactID"]))
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}

    def artifact_type(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def create_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        made = b64encode(f"Artifact:{len(self.coming) + 2}".encode()).decode()
        self.coming[made] = {**asked["input"], "files": []}
        begun = {"id": made, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": begun}}

    def create_artifact_manifest(self, _: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "f1", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "am1", "file": file}}}

    def create_artifact_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in asked["input"]["artifactFiles"]:
            made, name = file["artifactID"], file["name"]
            self.coming[made]["files"].append(name)
            node = {"storagePath": name, "uploadUrl": f"{self.url}/{made}/{name}"}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": made}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def commit_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        made = asked["artifactID"]
        self.artifacts.append(self.coming[made])
        return {"commitArtifact": {"artifact": {"id": made, "digest": "d"}}}

    def upsert_view2(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.views.append(asked)
        return {"upsertView": {"view": {"id": "v1", "name": asked["name"]}, "inserted": True}}

    # --- the rest ------------------------------------------------------------------------------

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/graphql":
            asked = json.loads(body)
            found = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
            name = found[1] if found else asked["query"]
            method = getattr(self, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(), None)
            if method is None:
                self.unknown.append(name)
                return {"data": {}}
            return {"data": method(asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            rows = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            history = self.history.setdefault(path.split("/")[-2], [])
            history += [json.loads(line) for line in rows.get("content", [])]
        else:
            self.files[path.removeprefix("/")] = body
        return {}


@contextmanager
def serving() -> Iterator[Kept]:
    """A server for as long as this lasts."""
    kept = Kept()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            with lock:
                answer = json.dumps(kept.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that leaves in the middle is no mistake of ours."""

    with Server(("127.0.0.1", 0), Handler) as server:
        kept.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield kept
        server.shutdown()
        thread.join(10)
