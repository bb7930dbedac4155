"""A running `train_gpt serve`, for the scripts beside this one. Python's own library is all it needs."""
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile

BINARY = os.environ.get("TRAIN_GPT_BINARY", "./train_gpt")


class Server:
    """`with Server(model, "--max-batch", "8") as server:` starts one at a free port and ends it by SIGTERM."""

    def __init__(self, model, *flags):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen([BINARY, "serve", model, "--port", "0", *flags], stdout=subprocess.PIPE, stderr=self.errors, text=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(self.errors.read().decode())
        self.url = line.strip()
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        assert status == 0, f"the server ended with status {status}"

    def connect(self, timeout=300):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, key=""):
        """The status and the body of an answer; the body read as JSON where it is."""
        connection = self.connect()
        headers = {"Authorization": "Bearer " + key} if key else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, json.loads(text) if response.headers["Content-Type"] == "application/json" else text.decode()

    def metrics(self):
        _, text = self.ask("GET", "/metrics")
        return {name: float(value) for name, value in re.findall(r"^(train_gpt_\S+) (\S+)$", text, re.M)}

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_model(binary, folder, context=128):
    """Trains a model that knows a few words, in seconds; the path of its run."""
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat", ".\n", "für ", "naïve ", "… ", "🙂 "]
    state, text = 1, []
    for _ in range(20000):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        text.append(words[(state >> 33) % len(words)])
    data, run = os.path.join(folder, "text.txt"), os.path.join(folder, "run")
    with open(data, "w", encoding="utf-8") as file:
        file.write("".join(text))
    flags = ["--layers", "2", "--heads", "2", "--channels", "32", "--context", str(context), "--batch", "8", "--steps", "60", "--sample-every", "0", "--eval-every", "0"]
    subprocess.run([binary, "train", "--data", data, "--out", run, *flags], check=True, capture_output=True)
    return run
