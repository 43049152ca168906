"""What happened: a hash-chained record of every decision, durable before anything is done."""
