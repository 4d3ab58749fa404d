"""AWS credentials: the environment when the provider was created, and the session that botocore makes of it."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit_core.providers.secrets import PLACEHOLDER_KEY, SALT, Hidden, Secret, reveal

if TYPE_CHECKING:
    import botocore.session

# What the chain of credentials reads (boto3 docs, guide/credentials, 1.44; botocore/credentials.py).
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)


@dataclass(frozen=True, slots=True)
class Chain:
    """Where botocore looks for credentials; no file is read before `open_session`.

    Attributes:
        fingerprint: Salted digest that distinguishes the environments within this process.
    """

    _variables: Hidden
    fingerprint: str

    @classmethod
    def of_environment(cls) -> Chain:
        """Return the chain of this process's environment."""
        found = Hidden({name: os.environ[name] for name in VARIABLES if os.environ.get(name)})
        digest = hashlib.sha256(SALT + repr(sorted(reveal(found).items())).encode()).hexdigest()
        return cls(found, digest)

    @property
    def identity(self) -> Secret:
        """The access key ID or the profile, which stands for the AWS account in limits of all processes."""
        get = reveal(self._variables).get
        profile = get("AWS_PROFILE") or get("AWS_DEFAULT_PROFILE")
        return Secret(get("AWS_ACCESS_KEY_ID") or (f"profile {profile}" if profile else PLACEHOLDER_KEY))

    def open_session(self) -> botocore.session.Session:
        """Return a session with the keys or the profile of the environment in which the provider was created.

        Raises:
            BotoCoreError: The configuration is invalid. The message has no key.
        """
        import botocore.session

        get = reveal(self._variables).get
        session = botocore.session.Session(profile=get("AWS_PROFILE") or get("AWS_DEFAULT_PROFILE"))
        session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
        if get("AWS_ACCESS_KEY_ID") and get("AWS_SECRET_ACCESS_KEY"):  # before those of the profile, as in the chain
            session.set_credentials(get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY"), get("AWS_SESSION_TOKEN"))
        return session


@functools.cache
def _data_loader(data_path: str | None) -> Any:
    """Return the loader of the service's description, which otherwise takes each client 60 ms."""
    import botocore.loaders

    return botocore.loaders.create_loader(data_path)
