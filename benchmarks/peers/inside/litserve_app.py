"""Runs LitServe: FILE PATH PORT BATCH_ROWS."""

import sys

import litserve
from onnx_json import OnnxModel


class Api(litserve.LitAPI):
    def __init__(self, file, **options):
        super().__init__(**options)
        self.file = file

    def setup(self, device):
        self.model = OnnxModel(self.file)

    def decode_request(self, request):
        return self.model.feed(request["inputs"])

    def predict(self, feed):
        return self.model.run(feed)

    def encode_response(self, results):
        return {"outputs": self.model.document(results)}


class BatchingApi(Api):
    def batch(self, feeds):
        return feeds

    def predict(self, feeds):
        return self.model.run_many(feeds)

    def unbatch(self, results):
        return results


if __name__ == "__main__":
    file, path, port, batch_rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if batch_rows > 1:
        api = BatchingApi(file, api_path=path, max_batch_size=batch_rows, batch_timeout=0.002)
    else:
        api = Api(file, api_path=path)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
