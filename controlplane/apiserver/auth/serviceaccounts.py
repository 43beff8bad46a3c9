"""Service account tokens (KEP-1205, bound tokens): issuing them, and knowing whose they are.

A token is a JWT signed with the cluster's key. It is good as long as its service account lives, and the pod, secret or node
that it is bound to.
"""

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from controlplane.apiserver.request import Reader, StatusError, UserInfo, unauthorized

ISSUER = "https://kubernetes.default.svc.cluster.local"
_LEAST_SECONDS, _DEFAULT_SECONDS, _MOST_SECONDS = 600, 3600, 24 * 3600
_LONGEST_SECONDS = 1 << 32
_CACHE_SECONDS, _CACHE_SIZE = 10.0, 2048
_BOUND = {"Pod": ("pod", "pods"), "Secret": ("secret", "secrets"), "Node": ("node", "nodes")}


class ServiceAccounts:
    """Issues and checks the tokens. key_folder has sa.key and sa.pub (PEM)."""

    def __init__(self, key_folder: Path, reader: Reader) -> None:
        private = serialization.load_pem_private_key((key_folder / "sa.key").read_bytes(), None)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise ValueError(f"{key_folder}/sa.key: is not an RSA key")
        self._private, self._public, self._reader = private, private.public_key(), reader
        der = self._public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.key_id = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
        self._verified: dict[str, tuple[float, dict[str, Any]]] = {}

    # --- issuing

    async def issue(
        self, namespace: str, name: str, service_account: Mapping[str, Any], request: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Answers a TokenRequest (authentication.k8s.io/v1). Raises StatusError."""
        spec = request.get("spec") or {}
        seconds = spec.get("expirationSeconds") or _DEFAULT_SECONDS
        if not isinstance(seconds, int) or not _LEAST_SECONDS <= seconds <= _LONGEST_SECONDS:
            raise StatusError(422, "Invalid", f"spec.expirationSeconds: Invalid value: {seconds}: may not specify a duration less"
                              " than 10 minutes or larger than 2^32 seconds")  # fmt: skip
        audiences = spec.get("audiences") or [ISSUER]
        claims: dict[str, Any] = {
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": service_account["metadata"]["uid"]},
        }
        if reference := spec.get("boundObjectRef"):
            self._bind(claims, reference, namespace, name)
        now = int(time.time())
        lifetime = min(seconds, _MOST_SECONDS)
        payload = {
            "aud": audiences, "exp": now + lifetime, "iat": now, "nbf": now, "iss": ISSUER, "jti": str(uuid.uuid4()),
            "sub": f"system:serviceaccount:{namespace}:{name}", "kubernetes.io": claims,
        }  # fmt: skip
        token = jwt.encode(payload, self._private, algorithm="RS256", headers={"kid": self.key_id})
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + lifetime))
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": None},
            "spec": {**spec, "audiences": audiences, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": expires},
        }

    def _bind(self, claims: dict[str, Any], reference: Mapping[str, Any], namespace: str, account: str) -> None:
        kind = reference.get("kind", "")
        if kind not in _BOUND:
            raise StatusError(400, "BadRequest", f'cannot use object ref of type "{kind}" with a token')
        claim, plural = _BOUND[kind]
        name = reference.get("name", "")
        found = self._reader.get("", plural, name, "" if kind == "Node" else namespace)
        if found is None:
            raise StatusError(404, "NotFound", f'{plural} "{name}" not found', {"name": name, "kind": plural})
        uid = found["metadata"]["uid"]
        if reference.get("uid") not in (None, "", uid):
            given = reference["uid"]
            raise StatusError(409, "Conflict", f"the UID in the bound object reference ({given}) does not match the UID in"
                              " record. The object might have been deleted and then recreated")  # fmt: skip
        if kind == "Pod":
            # No default: a mirror pod, which a node makes on its own word, has no account, and gets no token.
            running_as = found["spec"].get("serviceAccountName") or ""
            if running_as != account:
                why = f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.'
                raise StatusError(400, "BadRequest", why)
            if node_name := found["spec"].get("nodeName"):
                node = self._reader.get("", "nodes", node_name)
                claims["node"] = {"name": node_name, **({"uid": node["metadata"]["uid"]} if node else {})}
        claims[claim] = {"name": name, "uid": uid}

    def discovery(self) -> dict[str, Any]:
        """The OpenID provider's configuration."""
        return {
            "issuer": ISSUER,
            "jwks_uri": f"{ISSUER}/openid/v1/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def key_set(self) -> dict[str, Any]:
        """The public key as a JSON Web Key Set (RFC 7517)."""
        key: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._public))
        return {"keys": [{**key, "kid": self.key_id, "use": "sig", "alg": "RS256"}]}

    # --- checking

    def authenticate(self, token: str, audiences: Sequence[str] = (ISSUER,)) -> tuple[UserInfo, tuple[str, ...]]:
        """Whose token it is, and which of these audiences it was made for.

        Raises `unauthorized` where it is not, or no longer, good, or for none of them.
        """
        claims = self._claims(token)
        given = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        meant = tuple(audience for audience in audiences if audience in given)
        if not meant:
            raise unauthorized()
        bound = claims.get("kubernetes.io") or {}
        namespace, account = bound.get("namespace", ""), bound.get("serviceaccount") or {}
        self._expect("serviceaccounts", account, namespace)
        extra: dict[str, tuple[str, ...]] = {}
        if jti := claims.get("jti"):
            extra["authentication.kubernetes.io/credential-id"] = (f"JTI={jti}",)
        for claim, plural in (("pod", "pods"), ("secret", "secrets")):
            if reference := bound.get(claim):
                self._expect(plural, reference, namespace)
        # A pod's token names the pod's node too; only one that is bound to the node alone ends with it.
        if "pod" not in bound and (reference := bound.get("node")):
            self._expect("nodes", reference, "")
        for claim in ("pod", "node"):
            if reference := bound.get(claim):
                extra[f"authentication.kubernetes.io/{claim}-name"] = (reference["name"],)
                if reference.get("uid"):
                    extra[f"authentication.kubernetes.io/{claim}-uid"] = (reference["uid"],)
        name = f"system:serviceaccount:{namespace}:{account['name']}"
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        return UserInfo(name, account["uid"], groups, extra), meant

    def _claims(self, token: str) -> dict[str, Any]:
        now = time.time()
        cached = self._verified.get(token)
        if cached and cached[0] > now and cached[1]["exp"] > now:
            return cached[1]
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._public,
                algorithms=["RS256"],
                issuer=ISSUER,
                options={"verify_aud": False, "require": ["aud", "exp", "sub"]},  # who asks says for whom it must be
            )
        except jwt.PyJWTError:
            raise unauthorized() from None
        if len(self._verified) >= _CACHE_SIZE:
            self._verified.clear()
        self._verified[token] = (now + _CACHE_SECONDS, claims)
        return claims

    def _expect(self, plural: str, reference: Mapping[str, Any], namespace: str) -> None:
        found = self._reader.get("", plural, reference.get("name", ""), namespace)
        if found is None or found["metadata"]["uid"] != reference.get("uid"):
            raise unauthorized()
