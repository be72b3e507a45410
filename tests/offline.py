"""A network that is not there: any attempt to open or look up a connection fails the test."""

import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Every socket call raises, as an assertion that callers do not catch by mistake."""

    def refuse(*arguments, **options):
        raise AssertionError(f"network used: {arguments[:2]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
