"""What all processes know together of the provider's account."""
