"""Many pictures: prompt sheets, where pictures go, what is done already, and the workers that draw them."""
