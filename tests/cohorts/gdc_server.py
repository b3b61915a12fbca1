"""A small GDC on this machine: /status, /files (filters, fields, paging) and /data/<id> (Range), and faults by name.

    with GdcServer(records) as gdc:
        file_id = gdc.add("a.svs", b"...")
        gdc.fault("data", "cut", times=2, after=1000)

A fault is taken by the next `times` requests of its endpoint, in the order they were set.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

RELEASE = "Data Release 99.0 - January 01, 2030"
BLOCK = 1 << 14


def slide_record(name, content=b"", project="TCGA-BRCA", diagnoses=None, site="Here", file_id="", **fields):
    """A file record as the GDC has it, of a diagnostic slide. diagnoses: a list of their fields, or of morphologies."""
    diagnoses = [
        {"morphology": d, "primary_diagnosis": f"name of {d}"} if isinstance(d, str) else d
        for d in (["8500/3"] if diagnoses is None else diagnoses)
    ]
    case = {
        "submitter_id": name[:12],
        "project": {"project_id": project},
        "diagnoses": diagnoses,
        "tissue_source_site": {"code": name[5:7], "name": site},
    }
    return {
        "file_id": file_id or str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "file_name": name,
        "md5sum": hashlib.md5(content).hexdigest(),
        "file_size": len(content),
        "data_type": "Slide Image",
        "experimental_strategy": "Diagnostic Slide",
        "cases": [case],
    } | fields


def values_of(record, field):
    """Every value of a dotted field of a record, through its nested lists."""
    found = [record]
    for key in field.removeprefix("files.").split("."):
        found = [
            item.get(key)
            for part in found
            if part is not None
            for item in (part if isinstance(part, list) else [part])
            if isinstance(item, dict)
        ]
    return [value for part in found for value in (part if isinstance(part, list) else [part])]


def keeps(record, filters):
    """Whether a record passes the filters of a query."""
    content = filters["content"]
    if filters["op"] in ("and", "or"):
        return (all if filters["op"] == "and" else any)(keeps(record, part) for part in content)
    if filters["op"] not in ("in", "="):
        raise ValueError(f"unknown op {filters['op']}")
    wanted = content["value"] if isinstance(content["value"], list) else [content["value"]]
    return any(value in wanted for value in values_of(record, content["field"]))


def pruned(record, fields):
    """A record with the fields asked for only."""
    if not isinstance(record, dict):
        return record
    kept = {}
    for key in {field.split(".")[0] for field in fields} & set(record):
        inner = [field.partition(".")[2] for field in fields if field.startswith(key + ".")]
        value = record[key]
        if inner and isinstance(value, list):
            value = [pruned(item, inner) for item in value]
        elif inner:
            value = pruned(value, inner)
        kept[key] = value
    return kept


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Tests read server.log instead."""

    def do_GET(self):
        self._handle(b"")

    def do_POST(self):
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _handle(self, body):
        gdc, url = self.server.gdc, urlsplit(self.path)
        endpoint = url.path.strip("/").split("/")[0]
        self.entry = {"method": self.command, "path": self.path, "headers": dict(self.headers), "sent": 0, "body": body}
        with gdc.lock:
            gdc.log.append(self.entry)
            fault = next((f for f in gdc.faults if f["endpoint"] == endpoint and f["times"] > 0), None)
            if fault:
                fault["times"] -= 1
            self.entry["flying"] = int(endpoint == "data")
            gdc.flying += self.entry["flying"]
            gdc.most_flying = max(gdc.most_flying, gdc.flying)
        fault = fault or {"name": ""}
        try:
            if fault["name"] == "status":
                return self._send(fault["code"], fault.get("headers", {}), b'{"error": "a fault of this server"}')
            if fault["name"] == "silent":
                time.sleep(fault["seconds"])
            if fault["name"] == "hang up":
                self.close_connection = True
                return None
            if endpoint == "status":
                return self._json({"data_release": RELEASE, "status": "OK", "tag": "1.0", "version": 1})
            if endpoint == "files":
                return self._files(
                    fault, json.loads(body) if body else {key: value[0] for key, value in parse_qs(url.query).items()}
                )
            return self._data(fault, url.path.split("/")[-1])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._landed()

    def _send(self, status, headers, content):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self._write(content)

    def _write(self, content, pause=0.0, block=BLOCK):
        for start in range(0, len(content), block):
            if start and pause:
                time.sleep(pause)
            piece = content[start : start + block]
            if start + block >= len(content):
                self._landed()  # whoever asked may ask again as soon as it has the last byte
            self.wfile.write(piece)
            self.entry["sent"] += len(piece)

    def _landed(self):
        with self.server.gdc.lock:
            self.server.gdc.flying -= self.entry.pop("flying", 0)

    def _json(self, value):
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _files(self, fault, query):
        filters = query["filters"]
        filters = json.loads(filters) if isinstance(filters, str) else filters
        records = sorted((r for r in self.server.gdc.records if keeps(r, filters)), key=lambda r: str(r.get("file_id")))
        start, size = int(query.get("from", 0)), int(query.get("size", 10))
        page = records[start : start + size]
        if fault["name"] == "half a page":
            page = page[: fault["count"]]
        hits = [{"id": r.get("file_id")} | pruned(r, query["fields"].split(",")) for r in page]
        answer = {
            "data": {
                "hits": hits,
                "pagination": {"count": len(hits), "total": len(records), "size": size, "from": start, "sort": ""},
            },
            "warnings": {},
        }
        if fault["name"] == "warnings":
            answer["warnings"] = {"fields": "unrecognized values: [cases.moon]"}
        if fault["name"] == "answer":
            return self._send(200, {"Content-Type": "application/json"}, fault["content"])
        return self._json(answer)

    def _data(self, fault, file_id):
        gdc, name = self.server.gdc, fault["name"]
        if file_id not in gdc.contents:
            return self._send(404, {}, b'{"error": "not found"}')
        if gdc.secret and self.headers.get("X-Auth-Token") != gdc.secret:
            return self._send(403, {}, b'{"error": "Your token is invalid or expired"}')
        content, headers = gdc.contents[file_id], {"Accept-Ranges": "bytes"}
        if name == "other content":
            content = content[::-1]
        if name == "redirect":
            return self._send(302, {"Location": fault["to"].format(file_id=file_id)}, b"")
        if name == "disposition":
            headers["Content-Disposition"] = f'attachment; filename="{fault["filename"]}"'
        status, part = 200, content
        asked = self.headers.get("Range")
        if asked and name != "ignores Range":
            first = int(asked.removeprefix("bytes=").split("-")[0])
            if first >= len(content):
                return self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            status, part = 206, content[first:]
            shown = 0 if name == "other range" else first
            headers["Content-Range"] = f"bytes {shown}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(part) + fault.get("longer", 0))
        if name == "chunked":
            return self._chunked(part, fault)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if name == "cut":
            part = part[: fault["after"]]
            self.close_connection = True
        if name == "longer":
            self.close_connection = True
        self._write(part, fault.get("pause", 0.0), fault.get("block", BLOCK))
        return None

    def _chunked(self, part, fault):
        """An answer that does not say how long it is."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        for key, value in fault.get("headers", {}).items():
            self.send_header(key, value)
        self.end_headers()
        for piece in (part + b"x" * fault.get("more", 0), b""):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.entry["sent"] += len(part)


class GdcServer:
    """The server; `log` has one entry a request (method, path, headers, body, bytes sent of its content)."""

    def __init__(self, records=(), secret=""):
        self.records, self.contents, self.faults, self.log = list(records), {}, [], []
        self.secret, self.lock, self.flying, self.most_flying = secret, threading.Lock(), 0, 0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.http.daemon_threads, self.http.gdc = True, self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def add(self, name, content, file_id="", **fields):
        """A slide to be found and downloaded; returns its file id."""
        record = slide_record(name, content, file_id=file_id, **fields)
        self.records.append(record)
        self.contents[record["file_id"]] = content
        return record["file_id"]

    def fault(self, endpoint, name, times=1, **options):
        """The next `times` requests of an endpoint meet this fault."""
        self.faults.append({"endpoint": endpoint, "name": name, "times": times} | options)

    def asked(self, endpoint):
        """The log of one endpoint."""
        return [entry for entry in self.log if entry["path"].strip("/").startswith(endpoint)]


class _Proxy(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Tests read proxy.passed instead."""

    def do_GET(self):
        url = urlsplit(self.path)
        self.server.passed.append(self.path)
        host = http.client.HTTPConnection("127.0.0.1", self.server.to)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "proxy-connection"}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        host.request(self.command, url.path, body=body, headers=headers | {"Connection": "close"})
        answer = host.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "connection"):
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET


@contextmanager
def proxy_to(gdc):
    """(address, addresses asked of it) of an HTTP proxy for which every host is the given server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as proxy:
        proxy.to, proxy.passed, proxy.daemon_threads = gdc.http.server_address[1], [], True
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}", proxy.passed
        proxy.shutdown()
