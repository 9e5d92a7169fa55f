"""The shop's pages."""
from django.contrib.auth.views import LogoutView
from django.urls import path

from . import views

urlpatterns = [
    path("", views.home),
    path("add/", views.add),
    path("empty/", views.empty),
    path("login/", views.Login.as_view()),
    path("logout/", LogoutView.as_view()),
]
