"""What calls cost: tokens, prices, budgets, usage."""
