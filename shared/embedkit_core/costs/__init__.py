"""Costs of calls: tokens, prices, budgets, usage."""
