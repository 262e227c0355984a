"""The operators' side of the server: the admin API and the dashboard, on a listener of their own."""
