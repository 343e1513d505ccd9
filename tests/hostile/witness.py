"""The only way from uv to any host: a proxy that answers for the tests' index, and remembers who else is asked for."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from support.simple_index import SimpleIndex


class Witness:
    """Serves while it is entered. `foreign` are the hosts and ports, other than the index's, that were asked for."""

    def __init__(self, index: SimpleIndex) -> None:
        self.index = index
        self.foreign: list[str] = []
        self.answered = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.witness = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def variables(self) -> dict[str, str]:
        """What makes a program ask here for everything."""
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        return dict.fromkeys(names, address)


class _Server(ThreadingHTTPServer):
    witness: Witness
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        witness, url = self.server.witness, urlsplit(self.path)
        if url.netloc != urlsplit(witness.index.url).netloc:
            witness.foreign.append(url.netloc)
            self.send_error(502)
            return
        witness.answered += 1
        status, body = witness.index.answer(url.path, None)
        self.send_response(status)
        file = url.path.startswith("/files/")
        self.send_header("Content-Type", "application/octet-stream" if file else "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        self.server.witness.foreign.append(self.path)
        self.send_error(502)

    def log_message(self, format: str, *args: object) -> None:
        pass
