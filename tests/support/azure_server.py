"""Local servers of Azure: a resource with its v1 endpoint and older routes, and the endpoint of a managed identity.

Sources, read 2026-11-30: learn.microsoft.com/azure/ai-services/openai/reference (older routes),
/azure/ai-foundry/openai/api-version-lifecycle (v1), /azure/app-service/overview-managed-identity (tokens).
"""

import json
import re
import time
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs

from .http import Connection, Exchange, LocalServer, Request, Response
from .openai_replies import Json
from .openai_server import OpenAIServer

KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ0ZXN0In0.c2lnbmF0dXJl"
ROUTES = re.compile(r"(?:/api/projects/proj)?/openai/v1/embeddings|/openai/deployments/([^/]+)/embeddings\?(.*)")
WRONG_KEY = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
    "active subscription and use a correct regional API endpoint for your resource."
)
NO_DEPLOYMENT = (
    "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, "
    "please wait a moment and try again."
)


@dataclass(kw_only=True, eq=False, repr=False)
class AzureServer(OpenAIServer):
    """A resource. Older routes take a key in `api-key` only; all routes take tokens as bearer tokens.

    Attributes:
        has_v1: False for a gateway that has only the older routes.
    """

    path = "/openai/v1/embeddings"

    has_v1: bool = True
    deployments: tuple[str, ...] = ("dep",)
    versions: tuple[str, ...] = ("2024-10-21",)
    routes: list[str] = field(default_factory=list)  # as received

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        target = request.path + ("?" if request.query else "") + request.query
        self.routes.append(target)
        if (route := ROUTES.fullmatch(target)) and (route[1] or self.has_v1):
            query = parse_qs(route[2] or "", keep_blank_values=True)
            marks = {"x-deployment": route[1] or "", "x-version": ",".join(query.pop("api-version", []))}
            assert not query
            request = replace(request, path=self.path, headers={**request.headers, **marks})
            return await super().answer(request, connection)
        return Response(404, json.dumps({"error": {"code": "404", "message": "Resource not found"}}).encode())

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        headers = exchange.headers
        credentials = headers.get("authorization"), headers.get("api-key")
        key = (None, KEY) if headers["x-deployment"] else (f"Bearer {KEY}", None)
        if credentials not in (key, (f"Bearer {TOKEN}", None)):
            return 401, {"error": {"code": "401", "message": WRONG_KEY}}
        if headers["x-deployment"] and headers["x-version"] not in self.versions:
            return 404, {"error": {"code": "404", "message": "Resource not found"}}
        if (headers["x-deployment"] or exchange.body["model"]) not in self.deployments:
            return 404, {"error": {"code": "DeploymentNotFound", "message": NO_DEPLOYMENT}}
        self.api_key = None  # checked
        return super().refusal(exchange)


class IdentityServer(LocalServer):
    """The endpoint from which a managed identity of App Service gets its tokens.

    Attributes:
        resources: For what each token was requested.
    """

    header = "secret-of-the-identity"

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.refuses = refuses
        self.resources: list[str] = []

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        query = parse_qs(request.query)
        self.resources += query["resource"]
        if self.refuses or request.headers.get("x-identity-header") != self.header:
            refusal = {"statusCode": 400, "message": f"no identity for {self.header}"}
            return Response(400, json.dumps(refusal).encode())
        token = {"access_token": TOKEN, "expires_on": str(int(time.time()) + 86_400), "token_type": "Bearer"}
        return Response(200, json.dumps({**token, "resource": query["resource"][0]}).encode())
