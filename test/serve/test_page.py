#!/usr/bin/env python3
"""The server's page in a real browser, Chromium without a window. `make serve-test` installs what it needs and runs this.

    TRAIN_GPT_BINARY=./train_gpt build/serve-test/bin/python test/serve/test_page.py [--screenshot FILE.png]
"""
import os
import re
import shutil
import sys
import tempfile
import unittest

from playwright.sync_api import expect, sync_playwright

from server import BINARY, Server, make_model

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
SCREENSHOT = None
if sys.argv[1:2] == ["--screenshot"]:
    SCREENSHOT = sys.argv[2]
    del sys.argv[1:3]


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.run_path = make_model(BINARY, cls.folder.name)
        cls.template = os.path.join(cls.folder.name, "template")
        with open(cls.template, "w", encoding="utf-8") as file:
            file.write(TEMPLATE)
        cls.playwright = sync_playwright().start()
        # The sandbox needs rights that a container may not have.
        cls.browser = cls.playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()
        cls.folder.cleanup()

    def open(self, server):
        page = self.browser.new_page()
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        # Nothing may come from anywhere else.
        page.on("request", lambda request: request.url.startswith(server.url) or request.url.startswith("data:") or self.errors.append(request.url))
        page.goto(server.url)
        return page

    def test_prompt_and_chat(self):
        with Server(self.run_path, "--name", "small", "--chat-template", self.template) as server:
            page = self.open(server)
            expect(page.locator("#model")).to_have_text("small, context of 128 tokens")
            page.fill("#input", "the cat 🙂 ")
            page.fill("#max_tokens", "60")
            page.fill("#seed", "5")
            page.click("#go")
            expect(page.locator("#status")).to_have_text(re.compile(r"^60 tokens, [\d.]+ tokens/s, first after [\d.]+ s, as long as allowed, seed 5$"))
            told = server.ask("POST", "/v1/completions", {"prompt": "the cat 🙂 ", "max_tokens": 60, "seed": 5, "temperature": 0.8})[1]
            self.assertEqual(page.locator("#output").text_content(), "the cat 🙂 " + told["choices"][0]["text"].rstrip("\ufffd"))
            self.assertEqual(page.locator("#output .token").count(), 60)
            # Sure tokens are greener than doubtful ones.
            hues = page.eval_on_selector_all("#output .token", "all => all.map(t => [t.token.logprob, getComputedStyle(t).backgroundColor])")
            self.assertNotEqual(max(hues)[1], min(hues)[1])
            token = page.locator("#output .token").nth(3)
            token.hover()
            expect(page.locator("#tip")).to_be_visible()
            self.assertGreaterEqual(page.locator("#tip tr").count(), 5)
            self.assertEqual(page.locator("#tip .taken").count(), 1)
            self.assertRegex(page.locator("#tip tr").first.text_content(), r"^(\".+\"|bytes:.+)[\d.]+ %$")
            if SCREENSHOT:
                page.screenshot(path=SCREENSHOT)
            page.uncheck("#colours")
            self.assertEqual(token.evaluate("t => getComputedStyle(t).backgroundColor"), "rgba(0, 0, 0, 0)")

            page.click("#chat-mode")
            for number, words in enumerate(["hello", "<b>again</b>"]):
                page.fill("#input", words)
                page.fill("#max_tokens", "10")
                page.press("#input", "Enter")
                expect(page.locator("#status")).to_have_text(re.compile(r"^10 tokens, .*seed 5$"))
                self.assertEqual(page.locator("#messages .text").count(), 2 * number + 2)
                self.assertEqual(page.locator("#messages .text").nth(2 * number).text_content(), words)
            self.assertEqual(page.locator("#messages .token").count(), 20)
            page.click("#clear")
            self.assertEqual(page.locator("#messages .text").count(), 0)

            # An error of the server is told, and the page goes on.
            page.click("#prompt-mode")
            page.fill("#max_tokens", "100000")
            page.fill("#input", "x")
            page.click("#go")
            expect(page.locator("#error")).to_have_text(re.compile("context is 128 tokens"))
            page.fill("#max_tokens", "5")
            page.click("#go")
            expect(page.locator("#status")).to_have_text(re.compile("^5 tokens"))
            self.assertEqual(self.errors, [])

    def test_stop_and_key(self):
        with Server(self.run_path, "--api-key", "secret") as server:
            page = self.open(server)
            expect(page.locator("#model")).to_have_text(re.compile("asks for its API key"))
            page.click("summary")
            page.fill("#key", "secret")
            page.press("#key", "Tab")
            expect(page.locator("#model")).to_have_text(re.compile("context of 128 tokens"))
            expect(page.locator("#chat-mode")).to_be_disabled()
            page.fill("#input", "the ")
            page.fill("#stops", "mat")
            page.fill("#temperature", "0")
            page.fill("#max_tokens", "100")
            page.click("#go")
            expect(page.locator("#status")).to_have_text(re.compile("came to its end|as long as allowed"))
            self.assertNotIn("mat", page.locator("#output").text_content())
            self.assertEqual(self.errors, [])


if __name__ == "__main__":
    unittest.main()
