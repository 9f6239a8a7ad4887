"""The Modal job API."""
