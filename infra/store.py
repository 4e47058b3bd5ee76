"""The object store: any S3, with atomic conditional writes and a time limit on every call."""

import json
import mimetypes
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infra.settings import Settings, get_settings

# Small objects, of which there may be hundreds: read one after the other, each waits for the store.
READ_AT_ONCE = 16


class MissingObject(KeyError):
    """No object under this key."""

    def __str__(self) -> str:
        return self.args[0]


class CorruptObject(ValueError):
    """An object is there and is not what was once written under its key."""

    def __init__(self, bucket: str, key: str, why: object):
        super().__init__(f"{key!r} in bucket {bucket!r} is damaged ({why}): put an earlier copy back, or delete it where it can be made again")


class PreconditionFailed(RuntimeError):
    """A conditional write lost: the object exists already, or is not the one that was read."""


class StoreUnavailable(ConnectionError):
    """The store does not answer or refuses the credentials."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object's key, size in bytes and entity tag."""

    key: str
    size: int
    etag: str


class ObjectStore:
    """One bucket."""

    def __init__(self, bucket: str, settings: Settings | None = None):
        self.bucket, self.settings = bucket, settings or get_settings()

    @cached_property
    def _client(self):
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.settings.s3_endpoint,
            aws_access_key_id=self.settings.s3_access_key,
            aws_secret_access_key=self.settings.s3_secret_key.get_secret_value(),
            region_name=self.settings.s3_region,
            # Four files at once, each large one in up to ten parts.
            config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 4, "mode": "standard"}, s3={"addressing_style": "path"}, max_pool_connections=40),
        )

    @contextmanager
    def _errors(self, key: str):
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._translated(error.response["Error"].get("Code", ""), key) or error from None
        except (BotoCoreError, Boto3Error) as error:
            raise StoreUnavailable(f"the object store at {self.settings.s3_endpoint} does not answer ({type(error).__name__}); start the stack with `unimed up`") from None

    def _translated(self, code: str, key: str) -> Exception | None:
        if code in ("NoSuchKey", "404", "NotFound"):
            return MissingObject(f"no object {key!r} in bucket {self.bucket!r}")
        if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
            return PreconditionFailed(f"{key!r} in bucket {self.bucket!r} was written by somebody else")
        if code in ("AccessDenied", "403", "SignatureDoesNotMatch", "InvalidAccessKeyId", "NoSuchBucket"):
            return StoreUnavailable(f"the object store at {self.settings.s3_endpoint} refuses bucket {self.bucket!r} ({code}); check UNIMED_S3_* or run `unimed up`")
        if code in ("InternalError", "500", "ServiceUnavailable", "503", "SlowDown"):
            return StoreUnavailable(f"the object store at {self.settings.s3_endpoint} fails ({code}), as one does that is going down; start the stack with `unimed up`")
        return None

    def create_bucket(self) -> None:
        """Create the bucket where it does not exist."""
        from botocore.exceptions import ClientError

        with self._errors(self.bucket):
            try:
                self._client.create_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                    raise

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        with self._errors(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write an object whole; returns its etag.

        Raises:
            PreconditionFailed: `if_absent` and the key exists, or `if_match` is not its etag.
        """
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match else {}
        with self._errors(key):
            # Browsers that follow a link want to know what they get.
            kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
            try:
                return self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=kind, **condition)["ETag"]
            except ClientError as error:
                # The first attempt may have written and its answer been lost; the next one then meets its own work.
                if not condition or not error.response["ResponseMetadata"].get("RetryAttempts"):
                    raise
                if not (etag := self._etag_of(key, data)):
                    raise
                return etag

    def _etag_of(self, key: str, data: bytes) -> str | None:
        """The etag of an object that holds just this, None of any other."""
        try:
            there, etag = self.get_with_etag(key)
        except MissingObject:
            return None
        return etag if there == data else None

    def get_json(self, key: str, fields: Collection[str] = ()) -> dict:
        """An object's JSON; with `fields` it is a record that has them.

        Raises:
            CorruptObject: it is not that.
        """
        return self.get_json_with_etag(key, fields)[0]

    def get_json_with_etag(self, key: str, fields: Collection[str] = ()) -> tuple[dict, str]:
        """The same as `get_json`, and the object's etag."""
        data, etag = self.get_with_etag(key)
        try:
            found = json.loads(data)
        except ValueError as error:
            raise CorruptObject(self.bucket, key, error) from None
        if fields and not (isinstance(found, dict) and found.keys() >= set(fields)):
            raise CorruptObject(self.bucket, key, f"no record of {', '.join(fields)}")
        return found, etag

    def put_json(self, key: str, obj: object, **condition) -> str:
        return self.put(key, json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False).encode(), **condition)

    def exists(self, key: str) -> bool:
        try:
            with self._errors(key):
                self._client.head_object(Bucket=self.bucket, Key=key)
            return True
        except MissingObject:
            return False

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects under a prefix, in key order."""
        with self._errors(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", ()):
                    yield ObjectInfo(entry["Key"], entry["Size"], entry["ETag"])

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """What lies directly under a prefix that ends in "/", as prefixes that do so too, in order."""
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            return tuple(sorted(entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())))

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def delete_dir(self, prefix: str) -> None:
        """Delete every object under `prefix`; there need not be any."""
        for entry in list(self.list(prefix)):
            self.delete(entry.key)

    def upload_file(self, path: Path, key: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Upload a file, a large one in parts; the object is there whole or not at all. `on_bytes` is told of bytes as they leave, from several threads."""
        with self._errors(key):
            self._client.upload_file(str(path), self.bucket, key, Callback=on_bytes)

    def copy(self, source: str, key: str, etag: str) -> None:
        """Copy an object of this etag within the bucket: its bytes stay in the store.

        Raises:
            MissingObject, PreconditionFailed: there is no such object, or it has another etag.
        """
        with self._errors(source):
            self._client.copy_object(Bucket=self.bucket, Key=key, CopySource={"Bucket": self.bucket, "Key": source}, CopySourceIfMatch=etag)

    def download_file(self, key: str, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        """Download beside the target, then rename: the path never holds half an object. `on_bytes` is as for `upload_file`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            with self._errors(key):
                self._client.download_file(self.bucket, key, name, Callback=on_bytes)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def download_dir(self, prefix: str, folder: Path) -> None:
        """Raises MissingObject when nothing lies under the prefix."""
        found = list(self.list(f"{prefix}/"))
        if not found:
            raise MissingObject(f"nothing under {prefix!r} in bucket {self.bucket!r}")
        for entry in found:
            self.download_file(entry.key, Path(folder) / entry.key.removeprefix(f"{prefix}/"))

    def url(self, key: str, hours: int = 168) -> str:
        """A link that opens the object in a browser for some hours (S3 allows a week at most)."""
        return self._client.generate_presigned_url("get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=hours * 3600)


def corpus_store() -> ObjectStore:
    return ObjectStore(get_settings().bucket_corpus)


def model_store() -> ObjectStore:
    return ObjectStore(get_settings().bucket_models)


def log_store() -> ObjectStore:
    return ObjectStore(get_settings().bucket_logs)
