#!/usr/bin/env python3
"""Programs that people have, unchanged, against `train_gpt serve`: the openai package, and lm-eval, whose scores must be
those of `train_gpt eval`. `make serve-test` installs them and runs this.

    TRAIN_GPT_BINARY=./train_gpt build/serve-test/bin/python test/serve/test_clients.py
"""
import json
import os
import subprocess
import tempfile
import unittest

import openai
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from server import BINARY, Server, make_model

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CONTEXT = 128


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # lm-eval is not to go to the network; it has all it needs from the server.
        os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OPENAI_API_KEY="secret")
        cls.folder = tempfile.TemporaryDirectory()
        cls.run_path = make_model(BINARY, cls.folder.name, CONTEXT)
        template = os.path.join(cls.folder.name, "template")
        with open(template, "w", encoding="utf-8") as file:
            file.write(TEMPLATE)
        cls.server = Server(cls.run_path, "--name", "small", "--api-key", "secret", "--chat-template", template, "--max-queue", "1000")
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="secret", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__()
        cls.folder.cleanup()

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([m.id for m in models], ["small"])
        self.assertEqual(self.client.models.retrieve("small").id, "small")

    def test_completions(self):
        ask = {"model": "small", "prompt": "the cat ", "max_tokens": 24, "seed": 7, "n": 3, "logprobs": 2}
        whole = self.client.completions.create(**ask)
        self.assertEqual(whole.object, "text_completion")
        self.assertEqual(len(whole.choices), 3)
        self.assertEqual(whole.usage.completion_tokens, 72)
        texts = ["", "", ""]
        with self.client.completions.create(**ask, stream=True, stream_options={"include_usage": True}) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
        self.assertEqual(chunk.usage, whole.usage)
        for choice in whole.choices:
            self.assertEqual(texts[choice.index], choice.text)
            self.assertEqual(choice.finish_reason, "length")
            self.assertEqual(len(choice.logprobs.tokens), 24)
            self.assertTrue(all(logprob <= 0 for logprob in choice.logprobs.token_logprobs))
            self.assertTrue(all(2 <= len(top) <= 3 for top in choice.logprobs.top_logprobs))

    def test_stop_and_echo(self):
        ask = {"model": "small", "prompt": "the cat ", "max_tokens": 60, "temperature": 0}
        text = self.client.completions.create(**ask).choices[0].text
        stop = text[20:23]
        stopped = self.client.completions.create(**ask, stop=[stop, "never"]).choices[0]
        self.assertEqual(stopped.text, text[: text.index(stop)])
        self.assertEqual(stopped.finish_reason, "stop")
        self.assertEqual(self.client.completions.create(**ask, echo=True).choices[0].text, "the cat " + text)

    def test_chat(self):
        ask = {"model": "small", "messages": [{"role": "system", "content": "the"}, {"role": "user", "content": "cat"}], "seed": 1, "max_completion_tokens": 20, "logprobs": True, "top_logprobs": 3}
        whole = self.client.chat.completions.create(**ask)
        self.assertEqual(whole.choices[0].message.role, "assistant")
        self.assertEqual(len(whole.choices[0].logprobs.content), 20)
        self.assertEqual(len(whole.choices[0].logprobs.content[0].top_logprobs), 3)
        text = ""
        for chunk in self.client.chat.completions.create(**ask, stream=True):
            text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, whole.choices[0].message.content)
        with self.client.chat.completions.stream(**ask) as stream:
            stream.until_done()
            self.assertEqual(stream.current_completion_snapshot.choices[0].message.content, text)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.completions.create(model="large", prompt="x")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model="small", prompt="x", temperature=9)
        self.assertEqual((caught.exception.param, caught.exception.type), ("temperature", "invalid_request_error"))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model="small", prompt="x", max_tokens=10000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()

    def scorer(self, **more):
        return LocalCompletionsAPI(base_url=self.server.url + "/v1/completions", model="small", tokenizer_backend="remote", auth_token="secret", max_length=CONTEXT, **more)

    def test_lm_eval_scores_what_eval_scores(self):
        text = "the cat sat on a mat.\nnaïve … 🙂 für the mat\n" * 40
        # lm-eval predicts each token in windows of this many, the first one behind the end of text. Its last window would be
        # as long as the others and overlap the one before; eval's would be shorter.
        window = CONTEXT - 2
        while len(text.encode()) % window:
            text = text[:-1]
        ids = self.server.ask("POST", "/tokenize", {"prompt": text, "add_special_tokens": False}, key="secret")[1]["tokens"]
        self.assertEqual(len(ids), len(text.encode()))
        end = self.scorer().eot_token_id
        shard = os.path.join(self.folder.name, "val.bin")
        with open(shard, "wb") as file:  # a token shard: magic number, version, count, then 16 bits a token
            header = [20240520, 1, len(ids) + 1] + [0] * 253
            file.write(b"".join(value.to_bytes(4, "little") for value in header) + b"".join(i.to_bytes(2, "little") for i in [end] + ids))
        told = subprocess.run([BINARY, "eval", self.run_path, "--data", shard, "--context", str(window), "--device", "cpu", "--format", "json"], check=True, capture_output=True, text=True)
        result = json.loads(told.stdout)
        self.assertEqual(result["tokens"], len(ids))
        for batch in (1, 8):
            scored = self.scorer(batch_size=batch).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
            self.assertAlmostEqual(-scored[0] / len(ids), result["loss"], places=5)

    def test_lm_eval_chooses_and_generates(self):
        scorer = self.scorer(batch_size=4, num_concurrent=3)
        endings = ["cat", "mat.\n", "🙂 ", "xyzzy"]
        tasks = [Instance("loglikelihood", {}, ("the cat sat on a ", ending), 0) for ending in endings]
        scores = scorer.loglikelihood(tasks)
        self.assertEqual(len(scores), 4)
        self.assertEqual(min(scores)[0], scores[3][0])
        text = scorer.generate_until([Instance("generate_until", {}, ("the cat ", {"until": ["\n"], "max_gen_toks": 40}), 0)])[0]
        told = self.client.completions.create(model="small", prompt="the cat ", max_tokens=40, temperature=0, stop=["\n"])
        self.assertEqual(text, told.choices[0].text)


if __name__ == "__main__":
    unittest.main()
