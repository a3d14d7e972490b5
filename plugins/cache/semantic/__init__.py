"""The semantic cache: answers for questions that mean the same in other words."""

from plugins.cache.semantic.semantic import Question as Question
from plugins.cache.semantic.semantic import Semantic as Semantic
from plugins.cache.semantic.semantic import Settings as Settings
