"""Recordings of real machines (`teuthis run --record`), cut into inputs of the register's flows."""
