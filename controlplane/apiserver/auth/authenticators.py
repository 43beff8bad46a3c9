"""Who a request comes from: a client certificate, a service account's token, a bootstrap token, or nobody (anonymous).

https://kubernetes.io/docs/reference/access-authn-authz/authentication/
"""

import base64
import datetime
import hmac
import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from controlplane.apiserver.auth.serviceaccounts import ISSUER, ServiceAccounts
from controlplane.apiserver.request import Attributes, Authorizer, Reader, StatusError, UserInfo, unauthorized

AUTHENTICATED = "system:authenticated"
BOOTSTRAPPERS = "system:bootstrappers"
_BOOTSTRAP_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")


class Authenticators:
    """All of them in turn; the first that knows the credentials decides."""

    def __init__(self, reader: Reader, service_accounts: ServiceAccounts) -> None:
        self._reader, self._service_accounts = reader, service_accounts

    async def authenticate(self, headers: Mapping[str, str], peer_certificate: x509.Certificate | None) -> UserInfo | None:
        """The user, None without credentials. Raises `unauthorized` for bad ones."""
        if peer_certificate is not None:
            return _authenticated(certificate_user(peer_certificate))
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return None
        user, _ = self.review(token)
        return user

    def review(self, token: str, audiences: Sequence[str] = (ISSUER,)) -> tuple[UserInfo, tuple[str, ...]]:
        """Whose token it is, and for which of the audiences it was made. Raises `unauthorized` where it is for none of them."""
        if match := _BOOTSTRAP_TOKEN.fullmatch(token):
            if ISSUER not in audiences:
                raise unauthorized()
            return _authenticated(self._bootstrap(match[1], match[2])), (ISSUER,)
        user, found = self._service_accounts.authenticate(token, audiences)
        return _authenticated(user), found

    def _bootstrap(self, token_id: str, secret: str) -> UserInfo:
        """A bootstrap token, kept as the Secret kube-system/bootstrap-token-ID (KEP-130)."""
        found = self._reader.get("", "secrets", f"bootstrap-token-{token_id}", "kube-system")
        if found is None or found.get("type") != "bootstrap.kubernetes.io/token" or found["metadata"].get("deletionTimestamp"):
            raise unauthorized()
        data = {key: base64.b64decode(value).decode() for key, value in (found.get("data") or {}).items()}
        if not hmac.compare_digest(data.get("token-secret", "").encode(), secret.encode()) or data.get("token-id") != token_id:
            raise unauthorized()
        if data.get("usage-bootstrap-authentication") != "true" or has_expired(data.get("expiration")):
            raise unauthorized()
        extra = [group for group in data.get("auth-extra-groups", "").split(",") if group.startswith(f"{BOOTSTRAPPERS}:")]
        return UserInfo(f"system:bootstrap:{token_id}", groups=(BOOTSTRAPPERS, *extra))


def certificate_user(certificate: x509.Certificate) -> UserInfo:
    """The user of a client certificate that TLS has verified: the common name, in the groups of the organizations."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not names:
        raise unauthorized()
    groups = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return UserInfo(str(names[0].value), groups=tuple(str(group.value) for group in groups))


def has_expired(when: str | None) -> bool:
    """Whether an RFC 3339 time has passed; what is no time counts as passed."""
    if not when:
        return False
    try:
        return datetime.datetime.fromisoformat(when) <= datetime.datetime.now(datetime.UTC)
    except (ValueError, TypeError):
        return True


def impersonated(user: UserInfo, headers: "Mapping[str, str]", authorizer: Authorizer | None) -> UserInfo:
    """Who the Impersonate-* headers say the user wants to be, if they may. Raises StatusError (403, or 400 for half a wish)."""
    name = headers.get("Impersonate-User")
    get_all = getattr(headers, "getall", None)
    groups = asked_groups = tuple(get_all("Impersonate-Group", ())) if get_all else ()
    extra: dict[str, tuple[str, ...]] = {}
    for header in headers:
        if header.lower().startswith("impersonate-extra-"):
            extra[unquote(header[len("impersonate-extra-") :]).lower()] = (
                tuple(get_all(header)) if get_all else (headers[header],)
            )
    uid = headers.get("Impersonate-Uid", "")
    if not name:
        if groups or extra or uid:
            raise StatusError(400, "BadRequest", "requested impersonation without impersonating a user")
        return user
    wanted = [("", "users", name, "")]
    if name.startswith("system:serviceaccount:") and name.count(":") == 3:
        _, _, namespace, account = name.split(":")
        wanted = [("", "serviceaccounts", account, namespace)]
        groups = groups or ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    # The groups that an account is always in come with the account.
    wanted += [("", "groups", group, "") for group in asked_groups]
    wanted += [("authentication.k8s.io", "uids", uid, "")] if uid else []
    for key, values in extra.items():
        wanted += [("authentication.k8s.io", f"userextras/{key}", value, "") for value in values]
    if authorizer is not None and "system:masters" not in user.groups:
        for group, resource, target, namespace in wanted:
            plural, _, subresource = resource.partition("/")
            attributes = Attributes(user, "impersonate", group, "v1", plural, subresource, namespace, target)
            if not authorizer.authorize(attributes).allowed:
                where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
                raise StatusError(403, "Forbidden", f'{plural} "{target}" is forbidden: User "{user.name}" cannot impersonate '
                                  f'resource "{resource}" in API group "{group}"{where}')  # fmt: skip
    return _authenticated(UserInfo(name, uid, groups, extra))


def _authenticated(user: UserInfo) -> UserInfo:
    if AUTHENTICATED in user.groups or user.name == "system:anonymous":
        return user
    return UserInfo(user.name, user.uid, (*user.groups, AUTHENTICATED), user.extra)
