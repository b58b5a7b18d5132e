"""OpenVPN as a tunnel of the lab: two processes that know each other's certificate, AES-256-GCM."""

from __future__ import annotations

from lab import process
from lab.netns import UNDERLAY_V4
from lab.process import Failed
from lab.tunnels import OVERHEAD, Tunnel

_PORT = 1194


class Openvpn(Tunnel):
    """Point to point, TLS 1.3, without the kernel's data channel offload unless OpenVPN takes it by itself."""

    key = label = "openvpn"
    interfaces = ("ovpn0", "ovpn0")
    binary = "openvpn"

    def _start(self) -> None:
        if self.shape.idle_peers:
            raise Failed("openvpn: point to point has one peer")
        directory = self.lab.scratch(self.key)
        fingerprints = [self._certificate(directory, end.name) for end in self.lab.ends]
        for me, end in enumerate(self.lab.ends):
            self.daemons.append(end.start(*self._argv(me, directory, fingerprints[1 - me]), log=self._log(end.name)))

    def _argv(self, me: int, directory: str, fingerprint: str) -> list[str]:
        other, name = 1 - me, self.lab.ends[me].name
        addresses = ["--ifconfig", self.v4[me], "255.255.255.0", "--topology", "subnet"]
        if self.lab.has_ipv6:
            addresses += ["--ifconfig-ipv6", f"{self.v6[me]}/64", self.v6[other]]
        return [
            *(self.binary, "--dev", self.interfaces[me], "--dev-type", "tun", "--proto", "udp4", "--nobind" if me else "--bind"),
            *("--port", str(_PORT)) * (1 - me),
            *("--remote", UNDERLAY_V4[other], str(_PORT)) * me,
            *(("--tls-client",) if me else ("--tls-server", "--dh", "none")),
            *("--cert", f"{directory}/{name}.crt", "--key", f"{directory}/{name}.key", "--peer-fingerprint", fingerprint),
            *("--data-ciphers", "AES-256-GCM", "--tun-mtu", str(self.shape.mtu or self.lab.mtu - OVERHEAD)),
            *("--mssfix", "0", "--verb", "1", *addresses),
        ]

    def _certificate(self, directory: str, name: str) -> str:
        """Makes a key and a certificate that it signs itself; returns the certificate's fingerprint."""
        key, certificate = f"{directory}/{name}.key", f"{directory}/{name}.crt"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        process.run(["openssl", "req", "-x509", *curve, "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate])
        output = process.run(["openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"])
        return output.partition("=")[2].strip()
