"""A person at the page, with a real browser: commands on standard input, one JSON line each; an answer a line.

Usage: drive.py CHROMIUM CHROMEDRIVER FOLDER. Screenshots go to FOLDER.

{"do": "open", "url": …, "width": …, "dark": …}   {"do": "type", "into": id, "text": …}      {"do": "press", "id": …}
{"do": "text", "id": …}                           {"do": "enabled", "id": …}                 {"do": "shot", "name": …}
{"do": "axe"}                                     {"do": "tab", "times": …}                  {"do": "console"}
"""
import json
import os
import sys

from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


def browser(chromium, driver, folder):
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1"):
        options.add_argument(flag)
    options.add_argument("--user-data-dir=" + os.path.join(folder, "profile"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def answer(web, folder, request):
    do = request["do"]
    if do == "open":
        scheme = "dark" if request.get("dark") else "light"
        web.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        web.set_window_size(request.get("width", 1100), 1400)
        return web.get(request["url"])
    if do == "type":
        return web.find_element(By.ID, request["into"]).send_keys(request["text"] + Keys.ENTER)
    if do == "press":
        return web.find_element(By.ID, request["id"]).click()
    if do == "text":
        return web.find_element(By.ID, request["id"]).text
    if do == "enabled":
        return web.find_element(By.ID, request["id"]).is_enabled()
    if do == "shot":
        return web.save_screenshot(os.path.join(folder, request["name"] + ".png"))
    if do == "axe":
        found = Axe().run(web)["violations"]
        return [f"{rule['id']}: {rule['help']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]
    if do == "tab":
        # What gets the focus, one press after the other.
        seen = []
        for _ in range(request["times"]):
            web.switch_to.active_element.send_keys(Keys.TAB)
            seen.append(web.execute_script("return document.activeElement.id || document.activeElement.className"))
        return seen
    if do == "width":
        # How much wider than the window the page is.
        return web.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    if do == "console":
        return [entry["message"] for entry in web.get_log("browser") if entry["level"] == "SEVERE"]
    raise ValueError("unknown request " + do)


def main(chromium, driver, folder):
    web = browser(chromium, driver, folder)
    try:
        print(json.dumps({"ok": None}), flush=True)
        for line in sys.stdin:
            try:
                print(json.dumps({"ok": answer(web, folder, json.loads(line))}), flush=True)
            except Exception as error:
                print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), flush=True)
    finally:
        web.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
