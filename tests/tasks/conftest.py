"""A server that speaks OpenAI's chat completions, labels by a keyword (or answers by `rule`), and misbehaves where it is told to."""

import json
import re
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


def completion(text, **choice):
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    usage = {"prompt_tokens": 30, "completion_tokens": 2}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}], "usage": usage}


class ChatServer:
    """`misbehave[document]`: what it does on the first, second, ... request for a document, after which it labels it; `always` goes on for ever.

    asked, answered: requests and well-formed answers by document. `hold_after`: after so many answers, requests are held until `abandon`,
    which drops them unanswered. `document`: the document of a request's text; by default what stands in << >>.
    """

    def __init__(self):
        self.misbehave, self.always = {}, None
        self.asked, self.answered = Counter(), Counter()
        self.bodies, self.keys = [], set()
        self.hold_after, self.held = None, 0
        self.lock, self.changed = threading.Lock(), threading.Condition()
        self.released = threading.Event()
        self.document = lambda content: re.search(r"<<(.*)>>", content, re.DOTALL)[1]
        self.rule = lambda text: "math" if "theorem" in text else "other"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def handler(chat):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = chat.document(body["messages"][0]["content"])
                with chat.lock:
                    chat.asked[text] += 1
                    chat.bodies.append(body)
                    chat.keys.add(self.headers.get("Authorization"))
                    queue = chat.misbehave.get(text)
                    what = queue.pop(0) if queue else chat.always
                if self.path != "/v1/chat/completions":
                    return self.reply(404, {"error": {"message": "no such path"}})
                if chat.hold_after is not None and chat.answered.total() >= chat.hold_after:
                    with chat.changed:
                        chat.held += 1
                        chat.changed.notify_all()
                    chat.released.wait()
                    self.close_connection = True
                    return None
                return self.act(what, text)

            def act(self, what, text):
                key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                if what is None:
                    with chat.lock:
                        chat.answered[text] += 1
                    return self.reply(200, completion(chat.rule(text)))
                if isinstance(what, str) and what.startswith("says "):
                    return self.reply(200, completion(what.removeprefix("says ").replace("KEY", key)))
                if what == "refuses":
                    return self.reply(200, completion(None, message={"refusal": "I will not."}))
                if what == "is cut":
                    return self.reply(200, completion("Well, let me think about", finish_reason="length"))
                if what == "garbage":
                    return self.raw(200, b'{"choices": [')
                if what == "no choices":
                    return self.reply(200, {"choices": []})
                if what == "hangs":
                    chat.released.wait()
                    self.close_connection = True
                    return None
                if what == "resets":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return None
                status, error, headers = (*what, {}, {})[:3] if isinstance(what, tuple) else (what, {}, {})
                return self.reply(status, {"error": {"message": str(error).replace("KEY", key)}}, headers)

            def reply(self, status, value, headers=()):
                self.raw(status, json.dumps(value).encode(), headers)

            def raw(self, status, content, headers=()):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        return Handler

    def wait_held(self, number):
        with self.changed:
            assert self.changed.wait_for(lambda: self.held >= number, timeout=60)

    def abandon(self):
        self.hold_after = None
        self.released.set()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    chat = ChatServer()
    yield chat
    chat.close()
