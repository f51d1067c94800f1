"""The guide to batch normalization, measured: pages that ask a question and answer it by an experiment."""

from bnmonitor.guide.manual import described_page, parts
from bnmonitor.guide.pages import Page, all_pages, find_page, introduction, near_page

__all__ = ["Page", "all_pages", "described_page", "find_page", "introduction", "near_page", "parts"]
