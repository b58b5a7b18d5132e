"""Looks into the tunnels of the lab (scripts/lab) while they carry a load: where time goes, what a packet costs."""
