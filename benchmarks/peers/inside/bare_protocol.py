"""asyncio.Protocol with httptools: FILE PORT. A floor of cost, not a product."""

import asyncio
import sys

import httptools
import uvloop
from bare_handler import Handler

READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    def __init__(self, handler):
        self.handler = handler

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.url, self.head_length, self.body = b"", 0, []

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        if len(name) == 31 and name.lower() == b"inference-header-content-length":
            self.head_length = int(value)

    def on_body(self, body):
        self.body.append(body)

    def on_message_complete(self):
        if self.url.startswith(b"/v2/health"):
            self.transport.write(READY)
            return
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        answer, head_length = self.handler.infer(body, self.head_length)
        if head_length:
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n"
            self.transport.write(head % (len(answer), head_length) + answer)
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


async def main(file, port):
    handler = Handler(file)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(handler), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
