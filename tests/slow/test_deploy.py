"""docs/deploy.md, word by word, between two network namespaces: the clients' can only dial out."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENT = "fedloom-server", "fedloom-client"
ROWS = "".join(json.dumps({"question": f"w{i % 9} w{i % 5}", "answer": f"w{i % 4} w{i % 4}"}) + "\n" for i in range(60))
EXPERIMENT = """
name: deployed
model: {path: MODEL, task: causal_lm}
adapter: {kind: lora, r: 2, targets: all-linear}
data: {source: rows.jsonl, held_out: 0, template: plain, max_length: 32, partition: {kind: column, column: client}}
federation: {rounds: 3}
local: {optimizer: sgd, lr: 0.1, steps: 2, batch_size: 4}
engine: {kind: remote, threads: 1, round_deadline: 120}
"""
MODEL = """
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
words = ["<pad>", "<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(20)]
core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tf.PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
).save_pretrained("model")
shape = dict(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
tf.LlamaForCausalLM(tf.LlamaConfig(**shape, num_key_value_heads=2)).save_pretrained("model")
"""

needs = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nft"),
    reason="needs root, ip and nft for network namespaces",
)


def ip(*words):
    subprocess.run(["ip", *words], check=True, timeout=20)


@pytest.fixture
def network():
    """Two namespaces and a wire; the clients' refuses every connection that begins elsewhere."""
    for name in (SERVER, CLIENT):
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, timeout=20)
        ip("netns", "add", name)
        folder = Path("/etc/netns") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.31.1 fl.example.org\n")
    ip("link", "add", "fl0", "netns", SERVER, "type", "veth", "peer", "name", "fl1", "netns", CLIENT)
    for name, device, address in ((SERVER, "fl0", "10.77.31.1/24"), (CLIENT, "fl1", "10.77.31.2/24")):
        ip("-n", name, "address", "add", address, "dev", device)
        ip("-n", name, "link", "set", device, "up")
        ip("-n", name, "link", "set", "lo", "up")
    wall = "add table inet w; add chain inet w in {type filter hook input priority 0; policy drop;}; "
    wall += "add rule inet w in iif lo accept; add rule inet w in ct state established,related accept"
    ip("netns", "exec", CLIENT, "nft", wall)
    yield
    for name in (SERVER, CLIENT):
        ip("netns", "del", name)
        shutil.rmtree(Path("/etc/netns") / name)


class Machine:
    """A folder in a namespace, and what was started there."""

    def __init__(self, namespace, folder):
        self.namespace, self.folder, self.started = namespace, folder, []
        folder.mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

    def _command(self, text):
        return ["ip", "netns", "exec", self.namespace, "bash", "-e", "-c", text]

    def run(self, text, timeout=300):
        return subprocess.run(
            self._command(text), cwd=self.folder, env=self.environment, timeout=timeout, text=True, capture_output=True
        )

    def begin(self, text, until, timeout=120):
        log = self.folder / f"log-{len(self.started)}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(text),
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.started.append(process)
        for _ in range(timeout * 5):
            if until in log.read_text():
                return
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        raise AssertionError(log.read_text())

    def end(self):
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def blocks():
    """The commands of the page, by whose they are."""
    found = re.findall(r"```sh\n# (.*?)\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    return dict(found)


@pytest.mark.slow
@needs
def test_the_page_word_by_word(network, tmp_path):
    page = blocks()
    assert list(page) == ["every machine", "coordinator", "client", "operator"]
    subprocess.run([sys.executable, "-c", MODEL], cwd=tmp_path, check=True, timeout=120)
    coordinator = Machine(SERVER, tmp_path / "coordinator")
    clients = {name: Machine(CLIENT, tmp_path / name) for name in ("north", "south")}
    operator = Machine(CLIENT, tmp_path / "operator")
    try:
        coordinator.begin(page["coordinator"], "ready at")
        kits = coordinator.folder / "hospitals" / "kits"
        for name, machine in clients.items():
            shutil.copy(kits / f"{name}.tar.gz", machine.folder)
            (machine.folder / "rows.jsonl").write_text(ROWS)
            machine.begin(page["client"].replace("north", name), "joined hospitals")
        shutil.copy(kits / "operator.tar.gz", operator.folder)
        (operator.folder / "experiment.yaml").write_text(EXPERIMENT.replace("MODEL", str(tmp_path / "model")))
        done = operator.run(page["operator"])
        assert done.returncode == 0, done.stderr + (coordinator.folder / "log-0.txt").read_text()
        assert "job 1 finished; its run: " in done.stdout
        path = Path(done.stdout.rsplit("its run: ", 1)[1].strip())
        assert path.is_relative_to(coordinator.folder) and (path / "adapter" / "adapter_model.safetensors").exists()

        listening = operator.run("ss -Hltn").stdout.split()
        assert listening == [], "a client opens no port"
        assert coordinator.run("curl -s -m 3 http://10.77.31.2:22; true").stdout == ""
        lines = [
            json.loads(line) for line in (clients["north"].folder / "state" / "sent.jsonl").read_text().splitlines()
        ]
        trained = [line for line in lines if line["kind"] == "train"]
        assert [line["round"] for line in trained] == [1, 2, 3] and all(
            line["tensors"]["delta"]["norm"] > 0 for line in trained
        )
        for file in coordinator.folder.rglob("*"):
            assert not file.is_file() or b"w8 w4" not in file.read_bytes(), "no row has left its owner"

        assert operator.run("fedloom status --kit hospitals-operator").returncode == 0
        assert coordinator.run("fedloom federation revoke south").returncode == 0
        time.sleep(5)
        status = json.loads(operator.run("fedloom status --kit hospitals-operator --json").stdout)
        assert [c["client"] for c in status["clients"] if c["online"]] == ["north"]
        assert "the broker does not know the key of 'south'" in (clients["south"].folder / "log-0.txt").read_text()
    finally:
        for machine in (*clients.values(), operator, coordinator):
            machine.end()
