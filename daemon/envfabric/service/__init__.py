"""The service around the loop: settings, HTTP, systemd's notifications, and putting it all together."""
