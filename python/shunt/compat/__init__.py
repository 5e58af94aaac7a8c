"""Interfaces of other libraries over Shunt."""
