"""Paths, folders, URLs and hf:// addresses, against a small server of our own."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from iopath.common.file_io import PathManager
from safetensors.torch import save

from eomt_d2.checkpoint.addresses import HubHandler, local_file, register_hub
from eomt_d2.checkpoint.file_reading import read_weights
from eomt_d2.errors import UserError

COMMIT = "0123456789012345678901234567890123456789"
WEIGHTS = {"a": torch.arange(3.0), "b": torch.ones(2)}
INDEX = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
REPOSITORIES = {
    "org/whole": {"model.safetensors": save(WEIGHTS), "pytorch_model.bin": b"not asked for"},
    "org/split": {
        "model.safetensors.index.json": json.dumps(INDEX).encode(),
        "model-00001.safetensors": save({"a": WEIGHTS["a"]}),
        "model-00002.safetensors": save({"b": WEIGHTS["b"]}),
    },
    "org/other": {"sub/w.safetensors": save(WEIGHTS)},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: ``/<org>/<name>/resolve/<revision>/<file>``."""

    downloads: Counter = Counter()

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        parts = self.path.lstrip("/").split("/")
        if parts[0] == "plain":
            content, error = save(WEIGHTS), ""
        else:
            repository, file = "/".join(parts[:2]), "/".join(parts[4:])
            content = REPOSITORIES.get(repository, {}).get(file)
            error = "EntryNotFound" if repository in REPOSITORIES else "RepoNotFound"
            if repository == "org/gated":
                error = "GatedRepo"
        self.send_response(200 if content is not None else 403 if error == "GatedRepo" else 404)
        if content is None:
            self.send_header("X-Error-Code", error)
            content = b""
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content and not self.path.startswith("/api/"):
            Hub.downloads[self.path] += 1
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


SCRIPT = """
import json, sys
from iopath.common.file_io import HTTPURLHandler, PathManager
from eomt_d2.checkpoint.addresses import local_file, register_hub
from eomt_d2.errors import UserError
paths = PathManager()
paths.register_handler(HTTPURLHandler())
register_hub(paths)
for address in sys.argv[1:]:
    try:
        print(json.dumps(["file", local_file(address, paths)]))
    except UserError as error:
        print(json.dumps(["error", str(error)]))
"""


def resolve(server, home, *addresses, **environment):
    """In a process of its own: the client reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": server, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "FVCORE_CACHE": str(home / "urls"), "NO_PROXY": "127.0.0.1",
        **environment,
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *addresses],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_hub_and_urls(server, tmp_path):
    Hub.downloads.clear()
    addresses = ["hf://org/whole", "hf://org/split", "hf://org/other@v1/sub/w.safetensors",
                 f"{server}/plain/w.safetensors"]  # fmt: skip
    results = resolve(server, tmp_path, *addresses)
    assert [kind for kind, _ in results] == ["file"] * 4, results
    for _, file in results:
        torch.testing.assert_close(read_weights(file), WEIGHTS, rtol=0, atol=0)
    assert os.path.basename(results[0][1]) == "model.safetensors"
    assert len(Hub.downloads) == 6 and set(Hub.downloads.values()) == {1}
    # Downloaded once, the cache serves them without a network.
    offline = resolve(server, tmp_path, *addresses, "hf://org/new", HF_HUB_OFFLINE="1")
    assert offline[:-1] == results
    assert set(Hub.downloads.values()) == {1}
    assert offline[-1][1] == "hf://org/new is not in the cache, and the hub cannot be reached."


def test_what_the_hub_does_not_give(server, tmp_path):
    results = resolve(
        server, tmp_path, "hf://org/missing", "hf://org/other", "hf://org/whole/x.bin",
        "hf://org/gated", "hf://org", "hf://org/a b", f"{server}/org/whole/nothing",
    )  # fmt: skip
    assert {kind for kind, _ in results} == {"error"}
    messages = [message for _, message in results]
    assert messages[0].startswith("hf://org/missing does not exist on the hub, or is private")
    assert messages[1].startswith("hf://org/other does not hold any of model.safetensors, ")
    assert messages[2] == "hf://org/whole/x.bin does not hold x.bin."
    assert "accepted its licence" in messages[3]
    assert messages[4] == (
        "hf://org is no address of the form hf://org/name or hf://org/name/file."
    )
    assert messages[5].startswith("hf://org/a b could not be downloaded (")
    assert "nothing could not be downloaded (HTTP Error 404" in messages[6]
    assert not any("\n" in message for message in messages)


def test_a_folder(tmp_path):
    paths = PathManager()
    with pytest.raises(UserError, match=r"The folder .* holds none of model.safetensors, "):
        local_file(str(tmp_path), paths)
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
        assert local_file(str(tmp_path), paths) == str(tmp_path / name)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"The weights .*x.pth do not exist \(MODEL.WEIGHTS"):
        local_file(str(tmp_path / "x.pth"), PathManager())


def test_a_handler_of_somebody_else_stays():
    paths, theirs = PathManager(), HubHandler()
    paths.register_handler(theirs)
    register_hub(paths)
    assert paths._path_handlers["hf://"] is theirs
