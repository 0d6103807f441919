"""The words: records that cross a wall between rooms or machines. Pydantic only, no behaviour.

Data flows one way: interaction → feedback → dataset → soft targets → adapter → evaluation → release → device.
"""
