"""Everything for people: GraphQL over the four services. No rules of its own."""
