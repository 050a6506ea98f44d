"""The codec endpoint: lets the Temporal Web UI and the `temporal` command show encrypted payloads.

`POST /codec/encode` and `/codec/decode` ask for an admin token, as every route does (`temporal --codec-endpoint …
--codec-auth "Bearer …"`). The Web UI sends no token of ours, so it is given an address that holds a capability instead:
`/codec/<capability>`, derived from `DESKTOP_ADMIN_TOKEN` and as good as it for reading histories.
"""

import hmac
from functools import partial
from hashlib import sha256

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payloads

from api.errors import install, response_for
from models.codec_address import CODEC_PREFIX, codec_capability
from models.errors import InvalidRequest, NotFound
from models.keyring import KeyRing
from workflows.codec import EncryptionCodec, UndecryptableError

__all__ = ["CODEC_PREFIX", "codec_app"]


def codec_app(ring: KeyRing | None, admin_token: str, origins: list[str]) -> Starlette:
    """The application to mount below `/codec`; without a key ring it answers 404.

    Args:
        admin_token: `DESKTOP_ADMIN_TOKEN`; empty where there is no capability. origins: of Web UIs that may ask.
    """
    codec = EncryptionCodec(ring) if ring else None
    capability = sha256(codec_capability(admin_token).encode()).digest() if admin_token else b""

    async def answer(verb: str, request: Request) -> Response:
        given = request.path_params.get("capability")
        if given is not None and not hmac.compare_digest(sha256(given.encode()).digest(), capability):
            return response_for(NotFound("there is no such route"))
        if codec is None:
            return response_for(NotFound("payloads are not encrypted here; see DESKTOP_CODEC_KEYS_FILE"))
        try:
            payloads = json_format.Parse(await request.body(), Payloads()).payloads
            convert = codec.encode if verb == "encode" else codec.decode
            converted = Payloads(payloads=await convert(payloads))
        except (json_format.ParseError, UnicodeDecodeError):
            return response_for(InvalidRequest("the body is not Payloads in protobuf's JSON form"))
        except UndecryptableError as error:
            return response_for(InvalidRequest(str(error)))
        return Response(json_format.MessageToJson(converted), media_type="application/json")

    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["POST"], allow_headers=["*"])
    routes = [
        Route(f"{place}/{verb}", partial(answer, verb), methods=["POST"])
        for place in ("", "/{capability}")
        for verb in ("encode", "decode")
    ]
    app = Starlette(routes=routes, middleware=[cors])
    # A mounted application answers for itself: what is not there, in the shape of every other refusal.
    install(app)
    # Open to strangers: it sends nobody anywhere, least of all to the host that a request names.
    app.router.redirect_slashes = False
    return app
