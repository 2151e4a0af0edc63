"""What networks are built of. Its modules need torch and are imported when a recipe builds."""
