"""Azurite, Microsoft's own blob storage for tests, on loopback and in memory."""

import datetime
import shutil
import socket
import subprocess
import time
from pathlib import Path

ACCOUNT, CONTAINER = "devstoreaccount1", "azureml-blobstore"
# Azurite's one published key, the same in every installation; it opens nothing else.
KEY = ("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq"
       "/K1SZFPTOtr/KBHBeksoGMGw==")


class Azurite:
    """A running Azurite; `close` ends it."""

    def __init__(self, project: Path):
        program = project / ".node" / "node_modules" / ".bin" / "azurite-blob"
        found = str(program) if program.exists() else shutil.which("azurite-blob")
        if found is None:
            raise FileNotFoundError("no azurite: npm install --prefix .node azurite")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [found, "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--silent",
             "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError("azurite did not start")

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def service(self):
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(f"http://{self.host}/{ACCOUNT}",
                                 credential={"account_name": ACCOUNT, "account_key": KEY})

    def container(self, name: str) -> str:
        """Make a container and return its address with a signature for two hours."""
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        try:
            self.service().create_container(name)
        except ResourceExistsError:
            pass
        signature = generate_container_sas(
            ACCOUNT, name, account_key=KEY,
            permission=ContainerSasPermissions.from_string("racwdl"),
            expiry=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2))
        return f"http://{self.host}/{ACCOUNT}/{name}?{signature}"

    def download(self, address: str, folder: Path) -> Path:
        """Write everything below an address into a folder."""
        container, _, prefix = address.split(f"/{ACCOUNT}/", 1)[1].partition("/")
        client = self.service().get_container_client(container)
        for blob in client.list_blobs(name_starts_with=prefix):
            path = folder / blob.name.removeprefix(prefix).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.download_blob(blob.name).readall())
        return folder

    def upload(self, folder: Path, prefix: str) -> str:
        """Store a folder below a prefix of the workspace's container; returns the prefix."""
        self.container(CONTAINER)
        client = self.service().get_container_client(CONTAINER)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.upload_blob(f"{prefix}/{path.relative_to(folder).as_posix()}",
                               path.read_bytes(), overwrite=True)
        return prefix

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
