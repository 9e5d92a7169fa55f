"""A cart kept in the session, for visitors and for users who logged in.

The cart is the whole state of the shop: a lost or stale session shows on the next page.
"""
from django.contrib.auth.views import LoginView
from django.shortcuts import redirect, render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST

MONTH = 30 * 24 * 3600


@ensure_csrf_cookie
def home(request):
    """The cart, and for a user the number of pages seen: so each page that a user sees writes the session too.

    A visitor's page only reads it, so that asking with a dead cookie makes no new session.
    """
    if request.user.is_authenticated:
        request.session["pages"] = request.session.get("pages", 0) + 1
    state = {
        "user": request.user.get_username() or None,
        "pages": request.session.get("pages", 0),
        "cart": request.session.get("cart", []),
    }
    return render(request, "shop/home.html", {"state": state})


@require_POST
def add(request):
    """Puts one product into the cart, or one more of it."""
    name = request.POST["name"]
    cart = request.session.setdefault("cart", [])
    for line in cart:
        if line["name"] == name:
            line["count"] += 1
            break
    else:
        cart.append({"name": name, "count": 1, "note": request.POST.get("note", "")})
    request.session.modified = True
    return redirect("/")


@require_POST
def empty(request):
    """Empties the cart and leaves the rest of the session."""
    request.session.pop("cart", None)
    return redirect("/")


class Login(LoginView):
    """Django's own login, and "remember me": each answer is another form of session expiry."""

    template_name = "shop/login.html"

    def form_valid(self, form):
        response = super().form_valid(form)
        remember = self.request.POST.get("remember")
        if remember == "month":
            self.request.session.set_expiry(MONTH)
        elif remember == "browser":
            self.request.session.set_expiry(0)
        return response
