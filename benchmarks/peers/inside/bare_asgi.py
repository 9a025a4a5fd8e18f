"""A raw ASGI application under uvicorn: FILE PORT. A floor of cost, not a product."""

import sys

import uvicorn
from bare_handler import Handler


def application(handler):
    async def app(scope, receive, send):
        if scope["path"].startswith("/v2/health"):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        head_length = next((int(v) for k, v in scope["headers"] if k == b"inference-header-content-length"), 0)
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body"):
                break
        answer, head_length = handler.infer(body, head_length)
        headers = [(b"content-length", b"%d" % len(answer))]
        if head_length:
            headers.append((b"inference-header-content-length", b"%d" % head_length))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(Handler(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
