"""What `wandb sweep`, `wandb agent` and a run that is online ask of W&B's server, on this machine: one sweep, whose runs a test lists."""

import base64
import http.server
import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

ENTITY, PROJECT, SWEEP = "me", "sae", "sweep001"
GRAPHQL_NAME = re.compile(r"(?:query|mutation)\s+(\w+)")


def _id(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


class Quiet(http.server.ThreadingHTTPServer):
    """Says nothing of a client that hung up."""

    def handle_error(self, *_: object) -> None: ...


class Server:
    """`runs`: the parameters of each run that agents are given, one after the other. `stops`: numbers of those that are told to stop
    once they have logged something.
    """

    def __init__(self, runs: Sequence[Mapping[str, Any]], stops: Sequence[int] = ()):
        self.given, self.stops = list(runs), set(stops)
        self.config = ""
        self.runs: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self._answer({})

            def do_PUT(self) -> None:
                self._body()
                self._answer({})

            def do_POST(self) -> None:
                body = self._body()
                with server._lock:
                    answer = server._graphql(json.loads(body)) if self.path == "/graphql" else server._stream(self.path, body)
                self._answer(answer)

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("content-length") or 0))

            def _answer(self, value: Any) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _graphql(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        query, values = asked["query"], asked.get("variables") or {}
        named = GRAPHQL_NAME.search(query)
        name = asked.get("operationName") or (named.group(1) if named else "")
        answer = getattr(self, f"_{name}", None)
        if answer is None and "viewer" in query:
            answer = self._Viewer
        if answer is None:
            self.unknown.append(name)
            return {"data": {}}
        return {"data": answer(values)}

    def _Viewer(self, values: Mapping[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": _id("User:1"), "entity": ENTITY, "username": ENTITY, "email": "a@b.c", "flags": "{}", "admin": False, "name": ENTITY,
                  "teams": teams, "apiKeys": {"edges": []}, "deletedAt": None}  # fmt: skip
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _project(self) -> dict[str, Any]:
        return {"id": _id("P:1"), "name": PROJECT, "entity": {"id": _id("E:1"), "name": ENTITY}}

    def _UpsertSweep(self, values: Mapping[str, Any]) -> dict[str, Any]:
        self.config = values.get("config") or self.config
        return {"upsertSweep": {"sweep": {"name": SWEEP, "project": self._project()}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, values: Mapping[str, Any]) -> dict[str, Any]:
        method = yaml.safe_load(self.config)["method"]
        return {"project": {"sweep": {
            "id": _id(SWEEP), "name": SWEEP, "method": method, "state": "RUNNING", "description": None, "config": self.config,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None, "updatedAt": None, "earlyStopJobRunning": False, "bestLoss": None,
            "controller": None, "scheduler": None, "runs": {"edges": []},
        }}}  # fmt: skip

    _GetSweepState = _SweepWithRuns

    def _CreateAgent(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": _id(f"Agent:{values}")}}}

    def _Heartbeat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        at_work = json.loads(values["runState"])
        told = [{"type": "stop", "run_id": run} for run in at_work if self._is_stopped(run)]
        if not at_work and len(self.runs) < len(self.given):
            number = len(self.runs)
            run = f"run{number}"
            self.runs[run] = {"number": number, "history": [], "state": "pending", "exitcode": None, "config": {}, "group": None}
            args = {key: {"value": value} for key, value in self.given[number].items()}
            program = yaml.safe_load(self.config)["program"]
            told = [{"type": "run", "id": f"command{number}", "run_id": run, "program": program, "args": args}]
        elif not at_work:
            told = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": values["id"]}, "commands": json.dumps(told)}}

    def _is_stopped(self, run: str) -> bool:
        return self.runs[run]["number"] in self.stops and bool(self.runs[run]["history"])

    def _UpsertBucket(self, values: Mapping[str, Any]) -> dict[str, Any]:
        name = values.get("name") or "unnamed"
        run = self.runs.setdefault(name, {"number": -1, "history": [], "state": "pending", "exitcode": None, "config": {}, "group": None})
        run["state"] = "running"
        run["group"] = values.get("groupName") or run["group"]
        if values.get("config"):
            run["config"] = json.loads(values["config"])
        bucket = {"id": _id(f"Run:{name}"), "name": name, "displayName": values.get("displayName") or name, "description": None,
                  "config": json.dumps(run["config"]), "sweepName": SWEEP, "historyLineCount": 0, "project": self._project()}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _CreateRunFiles(self, values: Mapping[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{values['run']}/{name}"} for name in values["files"]]
        return {"createRunFiles": {"runID": _id(f"Run:{values['run']}"), "uploadHeaders": [], "files": files}}

    def _RunStoppedStatus(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"project": {"model": None, "run": {"stopped": False}}}

    _RunStatus = _RunStoppedStatus

    def _RunResumeStatus(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": None}

    def _ServerFeaturesQuery(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _stream(self, path: str, body: bytes) -> dict[str, Any]:
        """What a run logs."""
        found = re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
        if not found or found.group(1) not in self.runs:
            return {}
        run, sent = self.runs[found.group(1)], json.loads(body)
        history = (sent.get("files") or {}).get("wandb-history.jsonl")
        run["history"] += [json.loads(line) for line in history["content"]] if history else []
        if sent.get("complete"):
            run["exitcode"] = sent.get("exitcode")
            run["state"] = "finished" if run["exitcode"] == 0 else "failed"
        return {"limits": {}, "stopped": False}
