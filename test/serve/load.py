#!/usr/bin/env python3
"""A load generator, `evalscope perf`, against `train_gpt serve`: all its requests must be answered, and its counts be those
of the server.

    TRAIN_GPT_BINARY=./train_gpt build/serve-load/bin/python test/serve/load.py [--parallel 8] [--number 64] [--model RUN]
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

from server import BINARY, Server, make_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=50)
    parser.add_argument("--model", help="a run (otherwise a small one is trained)")
    options = parser.parse_args()
    evalscope = os.path.join(os.path.dirname(sys.executable), "evalscope")
    with tempfile.TemporaryDirectory() as folder:
        prompts = os.path.join(folder, "prompts.txt")
        with open(prompts, "w", encoding="utf-8") as file:
            file.writelines(f"the cat sat on a mat {i}\n" for i in range(50))
        with Server(options.model or make_model(BINARY, folder), "--name", "small") as server:
            before = server.metrics()["train_gpt_generated_tokens_total"]
            command = [evalscope, "perf", "--model", "small", "--url", server.url + "/v1/completions", "--api", "openai", "--stream",
                       "--dataset", "line_by_line", "--dataset-path", prompts, "--seed", "1", "--max-tokens", str(options.max_tokens),
                       "--parallel", str(options.parallel), "--number", str(options.number), "--no-test-connection", "--outputs-dir", folder]
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            if told.returncode:
                sys.exit(told.stdout[-2000:] + told.stderr[-2000:])
            made = server.metrics()["train_gpt_generated_tokens_total"] - before
        with open(glob.glob(folder + "/**/benchmark_summary.json", recursive=True)[0], encoding="utf-8") as file:
            summary = json.load(file)
    print(json.dumps(summary, indent=1))
    assert made == options.number * options.max_tokens, made
    succeeded = [value for key, value in summary.items() if key.lower().startswith("succe")]
    assert succeeded and float(succeeded[0]) == options.number, summary


if __name__ == "__main__":
    main()
