"""What an operator runs beside the server."""
