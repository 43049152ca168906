"""Durable state: one implementation on SQLAlchemy Core. It keeps rows and knows no rule about them."""
