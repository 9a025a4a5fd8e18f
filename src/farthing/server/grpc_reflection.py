"""gRPC's server reflection: grpcurl and its like ask which services there are, and for the files that describe them."""

from typing import Any, Final

from farthing.protocols.kserve_grpc import (
    HEALTH_SERVICE,
    REFLECTION_SERVICES,
    SERVICE,
    pool,
    reflection_message_class,
)
from farthing.server.auth import Door
from farthing.server.grpc_call import Rpc
from farthing.server.grpc_stream_call import StreamCall
from farthing.telemetry.counters import RouteClass
from farthing.types.errors import GRPC_NOT_FOUND, GRPC_UNIMPLEMENTED

SERVICES: Final = (SERVICE, HEALTH_SERVICE, *REFLECTION_SERVICES)


def reflection_rpcs() -> list[Rpc]:
    """Both versions, whose messages have the same fields."""
    return [_rpc(service) for service in REFLECTION_SERVICES]


def _rpc(service: str) -> Rpc:
    def request() -> Any:
        return reflection_message_class(service, "ServerReflectionRequest")

    async def serve(kind: Any, call: StreamCall) -> None:
        while (message := await call.next()) is not None:
            answer = _answered(message, reflection_message_class(service, "ServerReflectionResponse"))
            call.send(answer.SerializeToString())
            while call.is_backed_up:
                await call.change()

    path = f"/{service}/ServerReflectionInfo"
    return Rpc(path, request, serve, Door.INFERENCE, RouteClass.METADATA, is_stream=True)


def _answered(message: Any, kind: Any) -> Any:
    answer = kind(valid_host=message.host, original_request=message)
    asked = message.WhichOneof("message_request")
    try:
        if asked == "list_services":
            for name in SERVICES:
                answer.list_services_response.service.add(name=name)
        elif asked == "file_by_filename":
            _add_files(answer, pool().FindFileByName(message.file_by_filename))
        elif asked == "file_containing_symbol":
            _add_files(answer, pool().FindFileContainingSymbol(message.file_containing_symbol))
        elif asked == "all_extension_numbers_of_type":
            pool().FindMessageTypeByName(message.all_extension_numbers_of_type)
            answer.all_extension_numbers_response.base_type_name = message.all_extension_numbers_of_type
        elif asked == "file_containing_extension":
            raise KeyError("extensions are of proto2, and there are none here")
        else:
            answer.error_response.error_code = GRPC_UNIMPLEMENTED
            answer.error_response.error_message = "the request asks nothing that is known here"
    except KeyError as error:
        answer.error_response.error_code = GRPC_NOT_FOUND
        answer.error_response.error_message = str(error)[:200]
    return answer


def _add_files(answer: Any, file: Any) -> None:
    """The file, and those it imports: whoever asks would ask for them next."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    for one in (file, *file.dependencies):
        described = FileDescriptorProto()
        one.CopyToProto(described)
        answer.file_descriptor_response.file_descriptor_proto.append(described.SerializeToString())
