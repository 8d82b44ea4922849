"""A small server of chat completions, on this machine."""

import contextlib
import http.server
import json
import threading


class Server(http.server.ThreadingHTTPServer):
  """Answers by a function: (request's JSON, how many before) -> (status, body).

  A body of None is never sent.
  """

  daemon_threads = True
  request_queue_size = 256

  def __init__(self, answer):
    super().__init__(("127.0.0.1", 0), Handler)
    self.answer, self.bodies, self.keys = answer, [], []
    self.under_way = self.most = 0
    self.lock, self.ended = threading.Lock(), threading.Event()

  @property
  def address(self):
    return f"http://127.0.0.1:{self.server_port}/v1"

  def handle_error(self, request, client_address):
    """A client that has gone is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_POST(self):
    server = self.server
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    with server.lock:
      count = len(server.bodies)
      server.bodies.append(body)
      server.keys.append(self.headers["Authorization"])
      server.under_way += 1
      server.most = max(server.most, server.under_way)
    status, found = server.answer(body, count)
    if found is None:
      server.ended.wait(20)
      return
    with server.lock:
      server.under_way -= 1
    data = found if isinstance(found, bytes) else json.dumps(found).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *arguments):
    """Prints nothing."""


@contextlib.contextmanager
def serve(answer):
  server = Server(answer)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


def completion(text, finish="stop"):
  message = {"role": "assistant", "content": text}
  return {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "judge",
    "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
  }


def said(body, count=0):
  """Repeats what was asked."""
  return 200, completion(body["messages"][-1]["content"])
