"""PostgreSQL: connections to it, what its refusals mean, its queue, its notifications, its schema."""
