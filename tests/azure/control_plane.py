"""A control plane of Azure ML on loopback, over TLS, for the real MLClient.

It answers what the SDK asks while a job, a model or an endpoint is made; it refuses what the
service refuses (a deployment without its endpoint, traffic to nothing, a deletion during a
creation); and it fails on request, in every way that a network and a service can.
"""

import base64
import copy
import datetime
import ipaddress
import json
import os
import re
import signal
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.azure import schemas, storage

SUBSCRIPTION, GROUP, WORKSPACE = "00000000-0000-0000-0000-000000000000", "group", "space"
ROOT = (f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/"
        f"Microsoft.MachineLearningServices/workspaces/{WORKSPACE}")
LIVING = re.compile(r"/(onlineEndpoints|batchEndpoints|computes)/[^/]+$", re.I)
POLL = {"x-ms-retry-after-ms": "20"}  # some clients would look again after 30 s
SLOW = 0.25  # seconds that a creation takes under the fault "slow"
KEY, TOKEN = "key-of-the-control-plane", "token-of-the-control-plane"
SYSTEM_DATA = {f"{what}{key}": value for what in ("created", "lastModified") for key, value in
               (("At", "2026-01-01T00:00:00Z"), ("By", "tests"), ("ByType", "User"))}


@dataclass
class Request:
    """One request as it arrived, and how it was answered."""

    method: str
    path: str  # below the workspace where it is below it
    query: dict[str, str]
    body: Any
    authorization: str = ""
    status: int | None = None

    @property
    def operation(self) -> str:
        """The request without names and versions that differ from run to run."""
        path = re.sub(r"(/[\w-]*?)-[0-9a-f]{8}n?(?=/|$)", r"\1", self.path)
        path = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|[0-9a-f]{32,64}", "*", path)
        return f"{self.method} {path}"


FAULTS = ("429", "500", "drop-before", "drop-after", "slow", "interrupt-before",
          "interrupt-after")


@dataclass
class Fault:
    """What goes wrong (one of FAULTS) with the first `times` requests that `matches` picks.

    before and after tell whether the service accepted the request before the connection broke.
    """

    kind: str
    matches: Callable[[Request], bool]
    times: int = 1
    hits: list[str] = field(default_factory=list)

    def pick(self, request: Request) -> str | None:
        if len(self.hits) >= self.times or not self.matches(request):
            return None
        self.hits.append(request.operation)
        return self.kind


class Refused(Exception):
    """An error answer of the service."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class ControlPlane:
    """The service; `store` holds what exists, `requests` what was asked, `fault` what fails.

    start_deployment(name, properties) -> scoring address, and execute(name, properties, job) ->
    status stand for the machines; without them a deployment answers by echo and a job is done.
    """

    def __init__(self, folder: Path, blobs: "storage.Azurite | None" = None,
                 schema_folder: Path | None = None):
        self.store: dict[str, dict] = {}
        self.busy: dict[str, float] = {}  # until when a resource is still being made
        self.requests: list[Request] = []
        self.invalid: list[str] = []
        self.fault: Fault | None = None
        self.blobs, self.schema_folder = blobs, schema_folder
        self.start_deployment: Callable[[str, dict], str] | None = None
        self.execute: Callable[[str, dict, dict], str] | None = None
        self.lock = threading.RLock()
        self.certificate = write_certificate(folder)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True,
                                                 do_handshake_on_connect=False)
        self.base = f"https://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        with self.lock:
            self.store.clear(), self.busy.clear(), self.requests.clear(), self.invalid.clear()
            self.fault = self.start_deployment = self.execute = None

    def connection(self) -> dict[str, Any]:
        """The options with which MLClient comes here, with short waits between its retries."""
        base = self.base
        return dict(
            cloud="LocalCloud", connection_verify=str(self.certificate), show_progress=False,
            retry_total=2, retry_backoff_factor=0.01,
            cloud_metadata=dict(
                azure_portal=f"{base}/portal", resource_manager=f"{base}/",
                active_directory=f"{base}/login", aml_resource_id=f"{base}/aml",
                storage_endpoint="127.0.0.1", registry_discovery_endpoint=f"{base}/registry/"))

    def living(self) -> list[str]:
        """Endpoints and clusters that exist: what somebody would be billed for."""
        return sorted(key for key in self.store if LIVING.search(key))

    def working(self) -> list[str]:
        """Jobs that have not ended."""
        return sorted(key for key, job in self.store.items() if key.startswith("/jobs/")
                      and job["properties"]["status"] == "Running")

    def bodies(self, pattern: str) -> list[Any]:
        """The bodies of the accepted PUTs whose path matches."""
        return [r.body for r in self.requests if r.method == "PUT" and r.status < 300
                and re.search(pattern, r.path)]

    # -- answers: (status, body, headers) ---------------------------------------------------

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        for method, pattern, handler in ROUTES:
            if method in ("*", request.method) and (found := re.fullmatch(pattern, request.path,
                                                                          re.I)):
                return handler(self, request, *found.groups())
        raise Refused(404, "NotFound", f"no route {request.method} {request.path}")

    def cloud(self, request):
        return 200, [{"name": "LocalCloud", "portal": f"{self.base}/portal/",
                      "resourceManager": f"{self.base}/",
                      "authentication": {"loginEndpoint": f"{self.base}/login"},
                      "suffixes": {"storage": "127.0.0.1"}}], {}

    def discovery(self, request):
        return 200, {"api": self.base, "history": self.base, "catalog": self.base}, {}

    def workspace(self, request):
        resource = {
            "id": ROOT, "name": WORKSPACE, "location": "local", "kind": "Default", "tags": {},
            "type": "Microsoft.MachineLearningServices/workspaces",
            "identity": {"type": "SystemAssigned", "principalId": str(uuid.uuid4()),
                         "tenantId": str(uuid.uuid4())},
            "sku": {"name": "Basic", "tier": "Basic"},
            "properties": {
                "friendlyName": WORKSPACE, "workspaceId": "11111111-1111-1111-1111-111111111111",
                "storageAccount": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/"
                                  f"Microsoft.Storage/storageAccounts/{storage.ACCOUNT}",
                "discoveryUrl": f"{self.base}/discovery", "provisioningState": "Succeeded",
                "mlFlowTrackingUri": f"azureml://{self.base[8:]}/mlflow/v1.0{ROOT}",
                "publicNetworkAccess": "Enabled"}}
        return 200, resource, {}

    def pending_upload(self, request):
        address = self.blobs.container(f"c{uuid.uuid4().hex[:20]}")
        return 200, {"pendingUploadId": str(uuid.uuid4()),
                     "pendingUploadType": "TemporaryBlobReference",
                     "blobReferenceForConsumption": {
                         "blobUri": address.split("?")[0], "storageAccountArmId": "none",
                         "credential": {"credentialType": "SAS", "sasUri": address}}}, {}

    def keys(self, request, kind=None, name=None):
        self.refuse_unless(request, "key")
        return 200, {"primaryKey": KEY, "secondaryKey": "second"}, {}

    def token(self, request):
        self.refuse_unless(request, "amltoken")
        return 200, {"accessToken": TOKEN, "tokenType": "Bearer", "expiryTimeUtc": 0,
                     "refreshAfterTimeUtc": 0}, {}

    def refuse_unless(self, request, mode):
        endpoint = self.existing(request.path.rsplit("/", 1)[0])
        if endpoint["properties"]["authMode"].lower() != mode:
            raise Refused(400, "AuthMode", f"{request.path}: authentication is not by {mode}")

    def logs(self, request, path):
        self.existing(path)
        return 200, {"content": "started\nready"}, {}

    def datastores(self, request, one=None):
        name = one or "workspaceblobstore"
        store = {"id": f"{ROOT}/datastores/{name}", "name": name,
                 "type": "datastore", "properties": {
                     "datastoreType": "AzureBlob", "accountName": storage.ACCOUNT,
                     "containerName": storage.CONTAINER, "protocol": "http", "isDefault": True,
                     "endpoint": self.blobs.host if self.blobs else "none",
                     "credentials": {"credentialsType": "AccountKey"}}}
        return 200, store if one else {"value": [store]}, {}

    def datastore_secrets(self, request):
        return 200, {"secretsType": "Sas",
                     "sasToken": self.blobs.container(storage.CONTAINER).split("?")[1]}, {}

    def operation_status(self, request, key):
        state = "InProgress" if self.is_busy(key) else "Succeeded"
        return 200, {"id": request.path, "name": "operation", "status": state}, POLL

    def put(self, request, path):
        if self.schema_folder:
            wrong = schemas.problems(self.schema_folder, path, request.query["api-version"],
                                     request.body)
            if wrong:
                self.invalid.append(f"{path}: {wrong}")
                raise Refused(400, "InvalidBody", f"{path}: {wrong}")
        self.refuse_conflict(path)
        resource = {**copy.deepcopy(request.body), "id": ROOT + path,
                    "name": path.rsplit("/", 1)[1], "type": "resource",
                    "systemData": SYSTEM_DATA}
        properties = resource.setdefault("properties", {})
        headers = {}
        long_running = LIVING.search(path) or "/deployments/" in path
        if "/deployments/" in path:
            parent = self.existing(path.split("/deployments/")[0])
            properties.setdefault("scaleSettings", {"scaleType": "Default"})
            if self.start_deployment and path.lower().startswith("/onlineendpoints"):
                parent["properties"]["scoringUri"] = self.start_deployment(
                    parent["name"], properties)
        elif found := LIVING.search(path):
            old = self.store.get(path.lower(), {}).get("properties", {})
            properties.setdefault("scoringUri", old.get("scoringUri")
                                  or f"{self.base}/score{path}")
            for name in properties.get("traffic") or {}:
                self.existing(f"{path}/deployments/{name}")
            if found[1] == "computes":
                properties.pop("scoringUri")
        elif path.startswith("/jobs/"):
            self.start_job(resource, properties)
        elif "/models/" in path:
            properties.setdefault("flavors", {})
        properties["provisioningState"] = "Succeeded"
        existed = path.lower() in self.store
        self.store[path.lower()] = resource
        if long_running:
            headers = self.operation_headers(path)
        return 200 if existed else 201, resource, headers

    def start_job(self, resource, properties):
        page = {"jobServiceType": "Studio", "endpoint": f"{self.base}/page/{resource['name']}"}
        properties.update(status="Running" if self.execute else "Completed",
                          services={"Studio": page})
        if execute := self.execute:
            def work():
                try:
                    status = execute(resource["name"], properties, resource)
                except Exception as error:  # shown by the test through job.properties
                    resource["error"] = repr(error)
                    status = "Failed"
                with self.lock:
                    parent = self.store.get(f"/jobs/{resource.get('parent')}", resource)
                    for job in (properties, parent["properties"]):
                        if job["status"] == "Running":  # and not cancelled meanwhile
                            job["status"] = status
            threading.Thread(target=work, daemon=True).start()

    def patch(self, request, path):
        resource = self.existing(path)
        properties = (request.body or {}).pop("properties", {})
        resource.update(request.body)
        resource["properties"].update(properties)
        return 200, resource, {}

    def delete(self, request, path):
        if path.lower() not in self.store:
            return 204, None, {}
        self.refuse_conflict(path)
        for key in [k for k in self.store if k == path.lower() or k.startswith(path.lower() + "/")]:
            del self.store[key]
        headers = self.operation_headers(path)
        return 202, None, {**headers, "Location": headers["Azure-AsyncOperation"]}

    def get(self, request, path):
        if path.lower() in self.store:
            return 200, self.store[path.lower()], {}
        depth = path.count("/") + 1
        if re.search(r"/(jobs|versions|deployments|onlineEndpoints|batchEndpoints|computes)$",
                     path, re.I):
            below = [v for k, v in self.store.items()
                     if k.startswith(path.lower() + "/") and k.count("/") == depth]
            return 200, {"value": below}, {}
        return 200, self.existing(path), {}

    def cancel(self, request, path):
        job = self.existing(path)
        for one in (job, *(j for j in self.store.values() if j.get("parent") == job["name"])):
            one["properties"]["status"] = "Canceled"
        return 202, None, {"Location": self.operation_headers(path)["Azure-AsyncOperation"]}

    def score(self, request, path):
        endpoint = self.existing(path)
        if path.lower().startswith("/batchendpoints"):
            if audience(request.authorization) != f"{self.base}/aml":
                raise Refused(401, "Unauthorized", f"{path} needs a token for the workspace")
            return self.start_batch(request, path, endpoint)
        good = {"key": request.authorization == f"Bearer {KEY}",
                "amltoken": request.authorization == f"Bearer {TOKEN}",
                "aadtoken": audience(request.authorization) == "https://ml.azure.com"}
        if not good[endpoint["properties"]["authMode"].lower()]:
            raise Refused(401, "Unauthorized", f"{path} needs its own key, or a token for it")
        if not endpoint["properties"].get("traffic"):
            raise Refused(404, "NoTraffic", f"{path} has no deployment with traffic")
        return 200, {"echo": request.body}, {}

    def start_batch(self, request, path, endpoint):
        name = (endpoint["properties"].get("defaults") or {}).get("deploymentName")
        deployment = self.existing(f"{path}/deployments/{name}")
        job, child = (f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("batch", "scoring"))
        for key, parent in ((child, job), (job, None)):
            resource = {"id": f"{ROOT}/jobs/{key}", "name": key, "type": "job", "parent": parent,
                        "systemData": SYSTEM_DATA,
                        "properties": {"jobType": "Pipeline", "displayName": key, "jobs": {},
                                       "experimentName": "batch",
                                       **copy.deepcopy(request.body["properties"])}}
            if parent:
                properties = resource["properties"]
                properties["deployment"] = deployment["properties"]
                self.start_job(resource, properties)
            else:
                resource["endpoint"] = endpoint["name"]
                resource["properties"].update(
                    status="Running" if self.execute else "Completed", services={"Studio": {
                        "jobServiceType": "Studio", "endpoint": f"{self.base}/page/{job}"}})
            self.store[f"/jobs/{key}"] = resource
        return 201, self.store[f"/jobs/{job}"], {}

    def batch_jobs(self, request, name):
        return 200, {"value": [job for job in self.store.values()
                               if job.get("endpoint") == name]}, {}

    def run_data(self, request):
        name = request.body["runId"]
        outputs = self.store[f"/jobs/{name}".lower()]["properties"].get("written", {})
        return 200, {"runMetadata": {"runId": name, "status": "Completed", "outputs": {
            key: {"assetId": f"azureml://data/{name}/{key}", "type": "uri_folder"}
            for key in outputs}}}, {}

    def run_details(self, request, name):
        status = self.store[f"/jobs/{name}".lower()]["properties"]["status"]
        return 200, {"runId": name, "status": status, "properties": {}, "logFiles": {}}, {}

    def run_children(self, request, name):
        children = [job for key, job in self.store.items() if job.get("parent") == name]
        return 200, {"value": [{
            "runId": job["name"], "status": job["properties"]["status"], "runType": "azureml.batch",
            "displayName": job["name"], "experimentId": "batch", "properties": {
                "azureml.git.commit": ""}, "tags": {}} for job in children]}, {}

    def data_addresses(self, request):
        values = {}
        for asset in request.body["values"]:
            _, _, _, name, key = asset.split("/")
            folder = self.store[f"/jobs/{name}".lower()]["properties"]["written"][key]
            values[asset] = {"type": "uri_folder", "uri": (
                f"azureml://subscriptions/{SUBSCRIPTION}/resourcegroups/{GROUP}/workspaces/"
                f"{WORKSPACE}/datastores/workspaceblobstore/paths/{folder}")}
        return 200, {"values": values}, {}

    # -- state --------------------------------------------------------------------------------

    def existing(self, path: str) -> dict:
        if path.lower() not in self.store:
            raise Refused(404, "ResourceNotFound", f"{path} was not found")
        return self.store[path.lower()]

    def is_busy(self, path: str) -> bool:
        return self.busy.get(path.lower(), 0) > time.monotonic()

    def refuse_conflict(self, path: str) -> None:
        if any(self.is_busy(key) for key in self.busy if key.startswith(path.lower())):
            raise Refused(409, "Conflict", f"{path} is still being made")

    def operation_headers(self, path: str) -> dict[str, str]:
        return {"Azure-AsyncOperation": f"{self.base}/operation{path.lower()}",
                "x-ms-async-operation-timeout": "PT1H", **POLL}


ROUTES = [
    ("GET", "/metadata/endpoints", ControlPlane.cloud),
    ("GET", "/discovery", ControlPlane.discovery),
    ("GET", "/operation(/.+)", ControlPlane.operation_status),
    ("POST", "/history/.*/rundata", ControlPlane.run_data),
    ("GET", "/history/.*/runs/([^/]+)/children", ControlPlane.run_children),
    ("GET", "/history/.*/runs/([^/]+)(?:/details)?", ControlPlane.run_details),
    ("GET", "/mferp/.*/batchEndpoints/([^/]+)/jobs", ControlPlane.batch_jobs),
    ("POST", "/data/.*/dataversion/batchGetResolvedUris", ControlPlane.data_addresses),
    ("POST", "/score(/.+?)(?:/jobs)?", ControlPlane.score),
    ("GET", "", ControlPlane.workspace),
    ("POST", ".*/startPendingUpload", ControlPlane.pending_upload),
    ("POST", ".*/listKeys", ControlPlane.keys),
    ("POST", ".*/token", ControlPlane.token),
    ("POST", "(.*)/getLogs", ControlPlane.logs),
    ("POST", "/datastores/workspace(?:blob|artifact)store/listSecrets",
     ControlPlane.datastore_secrets),
    ("GET", "/datastores(?:/(workspace(?:blob|artifact)store))?", ControlPlane.datastores),
    ("POST", "(/jobs/[^/]+)/cancel", ControlPlane.cancel),
    ("PUT", "(/.+)", ControlPlane.put),
    ("PATCH", "(/.+)", ControlPlane.patch),
    ("DELETE", "(/.+)", ControlPlane.delete),
    ("GET", "(/.+)", ControlPlane.get),
]


def _handler(plane: ControlPlane) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *args):
            pass

        def reply(self, status, body=None, headers=None):
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json",
                               "Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def drop(self):
            self.close_connection = True
            self.connection.close()

        def handle_request(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = urlsplit(self.path)
            path = unquote(address.path).rstrip("/").replace("//", "/")
            if path.lower().startswith(ROOT.lower()):
                path = path[len(ROOT):]
            with plane.lock:
                request = Request(self.command, path, dict(parse_qsl(address.query)),
                                  json.loads(raw) if raw else None,
                                  self.headers.get("Authorization", ""))
                plane.requests.append(request)
                kind = plane.fault.pick(request) if plane.fault else None
            if kind == "429":
                return self.refuse(request, Refused(429, "TooManyRequests", "slow down"),
                                   {"Retry-After": "0.05"})
            if kind == "500":
                return self.refuse(request, Refused(500, "InternalServerError", "broken"))
            if kind == "interrupt-before":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
                kind = "drop-before"
            if kind == "drop-before":
                request.status = 0
                return self.drop()
            try:
                with plane.lock:
                    status, body, headers = plane.answer(request)
                    if kind == "slow" and "Azure-AsyncOperation" in headers:
                        plane.busy[request.path.lower()] = time.monotonic() + SLOW
                    body = copy.deepcopy(body)
            except Refused as refused:
                return self.refuse(request, refused)
            request.status = status
            if kind == "slow":
                time.sleep(SLOW / 4)
            if kind == "interrupt-after":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            if kind in ("drop-after", "interrupt-after"):
                return self.drop()
            self.reply(status, body, headers)

        def refuse(self, request, refused, headers=None):
            request.status = refused.status
            self.reply(refused.status,
                       {"error": {"code": refused.code, "message": str(refused)}}, headers)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = handle_request

    return Handler


def audience(authorization: str) -> str | None:
    """For whom a token of Credential was made; None for anything else."""
    parts = authorization.removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return None
    return json.loads(base64.urlsafe_b64decode(parts[1] + "==="))["aud"]


class Credential:
    """A token for anybody who asks, shaped like one of Azure's."""

    def get_token(self, *scopes: str, **options: Any):
        from azure.core.credentials import AccessToken

        def part(content: dict) -> str:
            return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

        until = int(time.time()) + 3600
        return AccessToken(".".join((
            part({"alg": "none", "typ": "JWT"}),
            part({"aud": scopes[0].removesuffix("/.default"), "oid": "0", "exp": until,
                  "tid": "11111111-1111-1111-1111-111111111111"}), part({}))), until)


def write_certificate(folder: Path) -> Path:
    """A fresh self-signed certificate for 127.0.0.1; its key lies beside it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()))
    path = folder / "cert.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path
