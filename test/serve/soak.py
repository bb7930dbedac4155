#!/usr/bin/env python3
"""Many clients ask one server at once for all kinds of things; some go away, some send nonsense. Each answer must be the
bytes that the same request gets when it is alone, no block of keys and values may be lost, and nobody may be passed over.

    TRAIN_GPT_BINARY=./train_gpt test/serve/soak.py [--requests 2000] [--clients 64] [--model RUN] [--seed 1]
"""
import argparse
import json
import queue
import random
import socket
import sys
import tempfile
import threading
import time

from server import BINARY, Server, make_model

PROMPTS = ["the cat sat on a mat.\n", "naïve für ", "🙂 … ", "on a ", "a"]
NONSENSE = [b"{", b"[]", b'{"prompt": 3}', b'{"prompt": "x", "n": 0}', b'{"prompt": "\xff"}', b'{"prompt": "x", "temperature": "hot"}',
            b'{"a":' + b"[" * 5000, b"", b'{"prompt": "x", "max_tokens": 100000}', b'{"messages": []}']


def kinds(count, seed):
    """The requests: ("complete" | "cancel" | "nonsense", body)."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        what = draw.random()
        if what < 0.1:
            made.append(("nonsense", draw.choice(NONSENSE)))
            continue
        prompt = "".join(draw.choice(PROMPTS) for _ in range(draw.randrange(1, 4)))
        body = {"prompt": prompt, "seed": draw.randrange(1000), "max_tokens": draw.choice([1, 5, 16, 40]), "temperature": draw.choice([0, 0.7, 1, 1.5])}
        for name, values in (("top_k", [5, 20]), ("top_p", [0.5, 0.9]), ("min_p", [0.05]), ("stop", ["mat", ["e ", "🙂"], "\n"]), ("logprobs", [0, 3]),
                             ("echo", [True]), ("n", [2, 3]), ("presence_penalty", [0.5]), ("repetition_penalty", [1.2]), ("logit_bias", [{"32": -5}])):
            if draw.random() < 0.25:
                body[name] = draw.choice(values)
        body["stream"] = draw.random() < 0.5
        made.append(("cancel" if what < 0.2 else "complete", body))
    return made


def joined(events):
    """The choices of a streamed answer, as a whole answer has them."""
    choices = {}
    for event in events:
        assert "error" not in event, event
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"index": part["index"], "text": "", "logprobs": None, "finish_reason": None})
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            if part["logprobs"]:
                choice["logprobs"] = {key: (choice["logprobs"] or {}).get(key, []) + values for key, values in part["logprobs"].items()}
    return [choices[index] for index in sorted(choices)]


def ask(server, body):
    """The choices of the answer, and when its first bytes came."""
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    first = time.monotonic()
    text = response.read().decode()
    connection.close()
    assert response.status == 200, text
    if not body["stream"]:
        choices = json.loads(text)["choices"]
        for choice in choices:
            # A stream has no part for the log-probabilities of no tokens.
            if choice["logprobs"] and not choice["logprobs"]["tokens"]:
                choice["logprobs"] = None
        return choices, first
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], events[-2:]
    return joined([json.loads(event[6:]) for event in events[:-2]]), first


def cancel(server, body, draw):
    """Sends the request, reads some of the answer or nothing of it, and goes away."""
    text = json.dumps({**body, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        if draw.random() < 0.7:
            connection.settimeout(0.2)
            try:
                connection.recv(draw.choice([1, 300, 3000]))
            except TimeoutError:
                pass


def nonsense(server, body):
    connection = server.connect()
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 400 and set(answer["error"]) == {"message", "type", "param", "code"}, answer


def soak(server, requests, clients, alone, seed):
    """Problems, and (arrival, first bytes) of the streamed requests."""
    todo, problems, times = queue.Queue(), [], []
    for item in enumerate(requests):
        todo.put(item)

    def client(number):
        draw = random.Random(seed * 1000 + number)
        while True:
            try:
                index, (kind, body) = todo.get_nowait()
            except queue.Empty:
                return
            try:
                if kind == "cancel":
                    cancel(server, body, draw)
                elif kind == "nonsense":
                    nonsense(server, body)
                else:
                    arrival = time.monotonic()
                    choices, first = ask(server, body)
                    if body["stream"]:
                        times.append((arrival, first))
                    if choices != alone[index]:
                        problems.append(f"request {index} {body}:\n  alone  {alone[index]}\n  now    {choices}")
            except Exception as error:  # pylint: disable=broad-except
                problems.append(f"request {index} {kind} {body}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems, times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=32, help="of 16 tokens: about a third of what the sequences at once would take")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="a run (otherwise a small one is trained)")
    options = parser.parse_args()
    requests = kinds(options.requests, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_model(BINARY, folder)
        with Server(model, "--max-batch", "1", "--no-prefix-cache") as server:
            alone = [ask(server, body)[0] if kind == "complete" else None for kind, body in requests]
        with Server(model, "--max-batch", str(options.max_batch), "--blocks", str(options.blocks), "--max-queue", "100000", "--step-tokens", "64") as server:
            before, begin = server.memory(), time.monotonic()
            problems, times = soak(server, requests, options.clients, alone, options.seed)
            seconds = time.monotonic() - begin
            # What was cancelled is given back as soon as the server sees that its client is gone.
            for _ in range(100):
                end = server.metrics()
                if end["train_gpt_blocks_used"] + end["train_gpt_sequences_running"] + end["train_gpt_sequences_waiting"] == 0:
                    break
                time.sleep(0.1)
            for name in ("blocks_used", "sequences_running", "sequences_waiting"):
                if end["train_gpt_" + name]:
                    problems.append(f"{name} is {end['train_gpt_' + name]} at the end")
            grown = server.memory() - before
    times.sort()
    # A request that waited on while one that came a second later was served for a second.
    overtaken = sum(any(first > other + 1 for later, other in times[i + 1:] if later > arrival + 1) for i, (arrival, first) in enumerate(times))
    if overtaken:
        problems.append(f"{overtaken} requests were overtaken by more than a second")
    asked = {kind: sum(k == kind for k, _ in requests) for kind in ("complete", "cancel", "nonsense")}
    waits = sorted(first - arrival for arrival, first in times) or [0]
    print(f"{len(requests)} requests in {seconds:.1f} s by {options.clients} clients: {asked['complete']} compared, {asked['cancel']} cancelled, {asked['nonsense']} nonsense;")
    print(f"first token after {waits[len(waits) // 2]:.3f} s (median), {waits[-1]:.3f} s at most; {int(end['train_gpt_preemptions_total'])} preemptions, "
          f"{int(end['train_gpt_cached_prompt_tokens_total'])} of {int(end['train_gpt_prompt_tokens_total'])} prompt tokens cached, "
          f"{int(end['train_gpt_generated_tokens_total'])} new tokens; memory grew by {grown / 1e6:.1f} MB")
    for problem in problems[:10]:
        print(problem)
    print(f"{len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
