"""Acting as the account that owns something, never as root where that is not needed.

Root creates the first directory and gives it away; everything under it is
written with the owner's own rights. So a symlink that the owner plants can
harm the owner only, and a race by a third account has nothing of root's to win.
"""

import codecs
import contextlib
import ctypes
import errno
import os
import pwd
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

from .errors import ConfigurationError

# Python loads a codec when it is first used; root's Python may lie where the account we act as cannot read it.
for _codec in ("ascii", "latin-1", "idna", "cp437", "utf-8-sig"):
    codecs.lookup(_codec)

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


class Account(NamedTuple):
    """A user account of the host: name, numeric user and primary group, home directory."""

    name: str
    uid: int
    gid: int
    home: str


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def current_account() -> Account:
    """Return the account of the effective user; one without a passwd entry gets its number as name."""
    try:
        return _account(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return Account(str(os.geteuid()), os.geteuid(), os.getegid(), os.path.expanduser("~"))


def find_account(name: str) -> Account:
    """Return the account called ``name``; raises ConfigurationError where there is none."""
    try:
        return _account(pwd.getpwnam(name))
    except KeyError:
        raise ConfigurationError(
            f"there is no account named {name!r} on this host", "create it, or name another"
        ) from None


def account_of_path(path: str) -> Account:
    """Return the account that owns ``path`` (not following a symlink); raises OSError where it is missing."""
    return account_of(os.lstat(path))


def account_of(status: os.stat_result) -> Account:
    """Return the account that owns what has this ``status``; one without a passwd entry gets its number as name."""
    try:
        return _account(pwd.getpwuid(status.st_uid))
    except KeyError:
        return Account(str(status.st_uid), status.st_uid, status.st_gid, "/")


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Do what follows with ``account``'s effective rights; nothing changes where they are ours already.

    For the file system only: what runs as a program is started with
    ``dropping_to``, which leaves no way back. Raises PermissionError where we
    are neither root nor that account.
    """
    if os.geteuid() == account.uid:
        yield
        return
    if os.geteuid() != 0:
        raise PermissionError(errno.EPERM, f"only root can act for {account.name}")
    user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(_groups_of(account))
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
        os.setgroups(groups)


def dropping_to(account: Account, before: Optional[Callable[[], None]] = None) -> Callable[[], None]:
    """Return a ``preexec_fn`` that leaves the child with ``account``'s rights alone, for good.

    ``before`` runs first, still with the rights that we have (to enter a
    namespace, say). All that needs an import or the account database is
    looked up here, before the fork.
    """
    from_root = os.getuid() == 0 and account.uid != 0
    groups = _groups_of(account) if from_root else []
    libc = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        if from_root:
            # We may be acting as the account already; only root may give up root for good.
            os.seteuid(0)
        if before is not None:
            before()
        if from_root:
            os.setgroups(groups)
            os.setgid(account.gid)
            os.setuid(account.uid)
        if hasattr(libc, "prctl") and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        os.umask(0o022)

    return drop


def environment_for(account: Account, inherited: Mapping[str, str]) -> Dict[str, str]:
    """Return the environment for a program run as ``account``.

    Of what we have, only the language, the search path, certificates and
    proxies pass: no token, no setting of another account's tools.
    """
    passed = {name: value for name, value in inherited.items() if name in _PASSED}
    passed.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    passed.update(HOME=account.home, USER=account.name, LOGNAME=account.name)
    return passed


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PASSED = frozenset(("PATH", "LANG", "LC_ALL", *_CERTIFICATES, *_PROXIES, *(name.upper() for name in _PROXIES)))


def _groups_of(account: Account) -> List[int]:
    return os.getgrouplist(account.name, account.gid)
