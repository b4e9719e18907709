"""HTTP/1.1 for protoserve."""

from protoserve_http.messages import HttpRequest, HttpResponse
from protoserve_http.params import HttpParams
from protoserve_http.parser import HttpRequestParser
from protoserve_http.serialiser import serialise
from protoserve_http.server import (
    HTTP_SPEC,
    HttpServerTask,
    WFHttpServer,
    WFHttpServerTask,
    WFHttpTask,
)

__all__ = [
    "HTTP_SPEC",
    "HttpParams",
    "HttpRequest",
    "HttpRequestParser",
    "HttpResponse",
    "HttpServerTask",
    "WFHttpServer",
    "WFHttpServerTask",
    "WFHttpTask",
    "serialise",
]
